"""Expert Choice: experts choose tokens, instead of tokens choosing experts. A complete moekit plugin in one file.

Every expert takes the same number of tokens, so nothing needs balancing and nothing is dropped. A token may get no
expert, or all of them. The choice depends on the whole batch, later tokens included: the router is not causal, and
moekit refuses it in a decoder.

Source: Zhou, Lei, Liu, et al. 2022, "Mixture-of-Experts with Expert Choice Routing" (arXiv 2202.09368), section 3.2.
Oracle: ``tests/test_expert_choice.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from moekit import Component, ExpertChoice, LayerDims, MoekitError, Router, hookimpl, option
from moekit.router_math import router_logits
from moekit.spec.kinds import Form, RouterSpec

MOEKIT_API = 2


class ExpertChoiceSpec(RouterSpec):
    """Options and capabilities of the Expert Choice router."""

    form: ClassVar[Form] = "expert_choice"  # it claims neither takes_bias nor causal

    per_token: int = option(2, "experts that a token gets on average; the paper's capacity factor c", ge=1)

    def active(self, num_experts: int) -> float:
        """``per_token``, on average."""
        return min(self.per_token, num_experts)


class ExpertChoiceRouter(Router):
    """Each expert takes its ``C = ceil(c·T/E)`` tokens of highest score: ``S = softmax_E(X W)``, top C of each column.

    Shapes and dtypes: ``x_TD``, any float; logits, scores and ``gate_EC`` are fp32, or fp64 for fp64 tokens or weights;
    ``token_EC`` is int64, best token first.

    Gates are the scores, not renormalised. Ties go to the earlier token. Padding is never chosen: of n valid tokens an
    expert takes ``ceil(c·n/E)``, and its other places hold padding, which is not sent.

    Gradients reach the weight and the tokens through the gates alone; the choice has none.

    Args:
        spec: options.
        dims: D and E.

    Raises:
        MoekitError: ``per_token`` is more than E.
    """

    def __init__(self, spec: ExpertChoiceSpec, dims: LayerDims) -> None:
        super().__init__()
        if spec.per_token > dims.num_experts:
            raise MoekitError(f"per_token={spec.per_token} is more than the layer's {dims.num_experts} experts")
        self.spec = spec
        self.weight_ED = nn.Parameter(torch.randn(dims.num_experts, dims.dim) * dims.dim**-0.5)

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> ExpertChoice:
        """Every expert chooses among T tokens.

        Raises:
            MoekitError: a selection bias is given; loads are equal without one.
        """
        if selection_bias_E is not None:
            raise MoekitError("expert_choice balances by construction: remove the balancer that gives a selection bias")
        logits_TE = router_logits(x_TD, self.weight_ED, None, valid_T)
        scores_TE = logits_TE.softmax(-1)
        token_EC = self._choose(scores_TE.detach().T, valid_T)
        return ExpertChoice(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            valid_T=valid_T,
            token_EC=token_EC,
            gate_EC=scores_TE.T.gather(1, token_EC),
        )

    def _choose(self, key_ET: Tensor, valid_T: Tensor | None) -> Tensor:
        """``token_EC``: each expert's tokens of highest score; padding fills places beyond its share of tokens."""
        E, T = key_ET.shape
        if valid_T is not None:
            share = -(-self.spec.per_token * valid_T.sum() // E)  # ceil, in integers
            key_ET = key_ET.masked_fill(~valid_T, -1.0)  # scores are >= 0, so: valid tokens, then padding
            rank_ET = best_first(key_ET).argsort(dim=1)
            key_ET = key_ET.masked_fill(valid_T & (rank_ET >= share), -2.0)  # valid tokens past the share come last
        return best_first(key_ET)[:, : -(-self.spec.per_token * T // E)]


def best_first(key_ET: Tensor) -> Tensor:
    """Each expert's tokens in descending order of key; of equal keys, the earlier token first."""
    return key_ET.argsort(dim=1, descending=True, stable=True)


@hookimpl
def moekit_components() -> list[Component]:
    """The routers of this plugin."""
    return [
        Component(
            name="expert_choice",
            spec=ExpertChoiceSpec,
            target=ExpertChoiceRouter,
            summary="experts choose tokens: equal load by construction; not causal",
            paper="Zhou et al. 2022",
        )
    ]
