"""The dense gate of 1991. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import router_logits
from moekit.routing import Soft
from moekit_routers.dense import Dense


class DenseRouter(Router):
    """Every expert works for every token, with weights ``p_t = softmax(W x_t + b)``.

    Source: Jacobs, Jordan, Nowlan, Hinton 1991, Adaptive Mixtures of Local Experts: the gating network.

    Shapes and dtypes: ``x_TD``, any float; the routing is ``Soft`` with ``combine_TEP`` (P = 1) and no
    ``dispatch_TEP`` (each expert sees each token itself), fp32, or fp64 for fp64 tokens or weights.

    Gradient: reaches the weight, the bias and ``x_TD`` through every gate. Padding has gate 0 and no gradient.
    """

    def __init__(self, spec: Dense, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.weight_ED = nn.Parameter(torch.empty(dims.num_experts, dims.dim))
        self.bias_E = nn.Parameter(torch.zeros(dims.num_experts)) if spec.bias else None
        bound = dims.dim**-0.5
        nn.init.uniform_(self.weight_ED, -bound, bound)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Soft:
        """Gates T tokens.

        Raises:
            MoekitError: a selection bias is given; it would have no effect.
        """
        if selection_bias_E is not None:
            raise MoekitError(
                "the dense router chooses no experts, so a selection bias has no effect on it; "
                "remove the balancer that gives one, or use a router that chooses: moekit ls routers"
            )
        logits_TE = router_logits(x_TD, self.weight_ED, self.bias_E, valid_T)
        scores_TE = logits_TE.softmax(-1)
        gate_TE = scores_TE if valid_T is None else scores_TE * valid_T[:, None]
        return Soft(logits_TE=logits_TE, scores_TE=scores_TE, valid_T=valid_T, combine_TEP=gate_TE[:, :, None])
