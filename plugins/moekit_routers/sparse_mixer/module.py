"""SparseMixer routing. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import first_top_k, router_logits
from moekit.routing import TokenChoice
from moekit_routers.sparse_mixer import SparseMixer

AS_IT_IS = 0.25
"""How often, in training, the gate of a sampled expert that is not the best one is left as it is."""


class SparseMixerRouter(Router):
    """Each token takes k experts one after another, each from those that are left and close to the best of them.

    An expert is close if ``(z_max - z_e) / max(|z_e|, z_max) <= 2r``, z_max being the largest logit left. Its gate is
    the softmax over the close ones. In evaluation the best is chosen; a second expert whose rivals are all further away
    has the gate 1, whatever the first one's is.

    In training an expert is sampled from that softmax. The gate of the best one is used as it is; that of another one
    as it is with probability 1/4, and otherwise a third of it (B of the paper). The gradient is always that of the
    softmax: with B this is Heun's third-order estimate of the gradient of an expectation over choices, without running
    the experts that were not chosen.

    Source: Liu et al. 2024, "GRIN: GRadient-INformed MoE" (arXiv 2409.12136, SparseMixer-v2), from Liu et al. 2023,
    "Sparse Backpropagation for MoE Training" (arXiv 2310.00811); the measure of closeness and the probability of 1/4
    are those of the code released with Phi-3.5-MoE.

    Shapes and dtypes: ``x_TD``, any float; logits, scores and gates are fp32, or fp64 for fp64 tokens or weights, under
    any autocast. ``expert_TK`` is int64, in the order of choosing. ``scores_TE`` is the softmax over all logits.

    Ties: the lowest expert index wins, on every device. A token with NaN gets k distinct experts and a NaN gate; other
    tokens are not affected. Padding is read as zeros.

    Gradient: reaches the weight and ``x_TD`` through the gates and through ``scores_TE``; the choice has none.

    Raises:
        MoekitError: top_k does not fit the number of experts.
    """

    def __init__(self, spec: SparseMixer, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router sparse_mixer: " + "; ".join(problems))
        self.spec = spec
        self.weight_ED = nn.Parameter(torch.empty(dims.num_experts, dims.dim))
        bound = dims.dim**-0.5
        nn.init.uniform_(self.weight_ED, -bound, bound)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        """Routes T tokens: k times, find the close ones, choose, gate."""
        logits_TE = router_logits(x_TD, self.weight_ED, None, valid_T)
        taken_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        experts, gates = [], []
        for _ in range(self.spec.top_k):
            expert_T1, gate_T1 = self._one(logits_TE, taken_TE)
            taken_TE = taken_TE.scatter(1, expert_T1, True)
            experts.append(expert_T1)
            gates.append(gate_T1)
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=logits_TE.softmax(-1),
            valid_T=valid_T,
            expert_TK=torch.cat(experts, -1),
            gate_TK=torch.cat(gates, -1),
        )

    def _one(self, logits_TE: Tensor, taken_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The next expert of each token and its gate, each ``[T, 1]``."""
        key_TE = logits_TE.detach().masked_fill(taken_TE, -torch.inf)
        best_T1 = first_top_k(key_TE, 1)
        max_T1 = key_TE.gather(1, best_T1)
        far_TE = (max_T1 - key_TE) / torch.maximum(key_TE.abs(), max_T1) > 2 * self.spec.jitter
        far_TE = far_TE | taken_TE
        prob_TE = logits_TE.masked_fill(far_TE, -torch.inf).softmax(-1)
        if not self.training:
            return best_T1, prob_TE.gather(1, best_T1)
        noise_TE = (
            -torch.empty_like(key_TE).exponential_().log()
        )  # Gumbel's: the largest sum is a sample of the softmax
        expert_T1 = first_top_k(key_TE.masked_fill(far_TE, -torch.inf) + noise_TE, 1)
        as_it_is_T1 = (expert_T1 == best_T1) | (torch.rand_like(max_T1) < AS_IT_IS)
        gate_T1 = prob_TE.gather(1, expert_T1)
        return expert_T1, gate_T1 - (gate_T1 * 2 / 3).detach().masked_fill(as_it_is_T1, 0)
