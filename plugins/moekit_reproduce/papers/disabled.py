"""Disabling experts of a trained mixture: each token's best ones, or the shared ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from moekit.contracts import Router
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.router_math import first_top_k
from moekit.routing import TokenChoice


@final
class Without(Router):
    """Top-k by a softmax router, without each token's best experts.

    Args:
        inner: the trained router.
        best: how many experts a token loses.
        more: how many it takes beyond the router's own number.
    """

    def __init__(self, inner: Router, best: int = 0, more: int = 0) -> None:
        super().__init__()
        self.inner = inner
        self.best = best
        self.more = more

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        """Routes T tokens; the gates are the softmax over the experts that are left.

        Raises:
            MoekitError: the inner router does not choose by token, or scores otherwise than by a softmax.
        """
        routing = self.inner(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E, token_T=token_T)
        if not isinstance(routing, TokenChoice) or routing.sigmoid or selection_bias_E is not None:
            raise MoekitError(f"{type(self.inner).__name__}: experts are disabled only under a softmax without a bias")
        logits_TE = routing.logits_TE
        if self.best:
            logits_TE = logits_TE.scatter(1, first_top_k(logits_TE, self.best), -torch.inf)
        scores_TE = logits_TE.softmax(-1)
        expert_TK = first_top_k(scores_TE, routing.expert_TK.shape[1] + self.more)
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            valid_T=valid_T,
            expert_TK=expert_TK,
            gate_TK=scores_TE.gather(1, expert_TK),
        )


@contextmanager
def disabled(layers: Sequence[MoELayer], *, best: float = 0.0, shared: bool = False) -> Iterator[None]:
    """In layers, disables each token's best share of the experts; or the shared ones, in whose place one more is taken.

    Args:
        layers: with softmax routers that do not renormalise.
        best: share of the routed experts, rounded.
        shared: whether the shared experts are removed.
    """
    before = [(layer.router, layer.shared) for layer in layers]
    try:
        for layer in layers:
            layer.router = Without(layer.router, round(best * layer.experts.num_experts), more=int(shared))
            layer.shared = None if shared else layer.shared
        yield
    finally:
        for layer, (router, experts) in zip(layers, before, strict=True):
            layer.router, layer.shared = router, experts
