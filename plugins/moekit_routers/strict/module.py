"""Strictly balanced gating. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import router_logits
from moekit.routing import LossTerm, TokenChoice
from moekit_routers.strict import Strict


class StrictRouter(Router):
    """Gates are ``softmax(W x) · mask``, divided by their sum over experts; the mask keeps the load even.

    In training the mask depends on the batch: expert e keeps the m = k·T/E tokens with the largest softmax value X_te,
    where T counts valid tokens and m is rounded down, at least 1. So all loads are exactly m. Any number of experts may
    keep a token; if none does, its gates are 0. In evaluation a token must not depend on its batch: the mask is
    ``X_te > threshold_e``, and loads may be uneven.

    The thresholds are trained by ``own_loss``, in training alone: the mean over valid tokens of ``sum_e
    (by threshold - by batch)_te · (X_te - threshold_e)``, which is 0 where the two masks agree and positive where they
    differ. A threshold that too many tokens exceed has a negative gradient, so a step raises it. X is a constant here:
    this loss moves thresholds, not the router's weight.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, appendix F. Thresholds start at 1/E, the softmax
    value of equal logits; the paper gives no initial value.

    Shapes and dtypes: ``x_TD``, any float; arithmetic is fp32, or fp64 for fp64 tokens or weights, under any autocast.
    Each token has K = E choices, and ``sent_TK`` is the mask. Dispatchers that compute a row for every choice compute
    E rows per token, so this router is for few experts.

    Ties: the earliest token wins. No expert keeps padding. A token with NaN takes a place at every expert in training
    (a NaN counts as largest) and its gates are NaN; other tokens' gates stay finite.

    Selection bias: rejected; the load is even by construction.

    Gradient: reaches the weight and ``x_TD`` through the gates of tokens that two or more experts keep, and through
    ``scores_TE``; the thresholds through ``own_loss``.

    Raises:
        MoekitError: top_k does not fit the number of experts.
    """

    def __init__(self, spec: Strict, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router strict: " + "; ".join(problems))
        self.spec = spec
        self.weight_ED = nn.Parameter(torch.empty(dims.num_experts, dims.dim))
        self.threshold_E = nn.Parameter(torch.full((dims.num_experts,), 1 / dims.num_experts))
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
        """Routes T tokens.

        Raises:
            MoekitError: a selection bias is given; it would have no effect.
        """
        if selection_bias_E is not None:
            raise MoekitError(
                "the strict router balances the load by construction, so it takes no selection bias; "
                "remove the balancer that gives one, or use the router topk"
            )
        logits_TE = router_logits(x_TD, self.weight_ED, None, valid_T)
        scores_TE = logits_TE.softmax(-1)
        passes_TE = scores_TE.detach() > self.threshold_E.detach().to(scores_TE.dtype)
        kept_TE, own_loss = passes_TE, None
        if self.training:
            kept_TE = self._best_of_batch(scores_TE.detach(), valid_T)
            own_loss = self._threshold_loss(passes_TE, kept_TE, scores_TE.detach(), valid_T)
        else:
            kept_TE = passes_TE | scores_TE.isnan()  # NaN exceeds no threshold, but its token must come out NaN
        # from logits, since the softmax values of a token's experts may be too small to be divided by their sum
        out_TE = ~kept_TE & kept_TE.any(-1, keepdim=True)
        gate_TE = logits_TE.masked_fill(out_TE, -torch.inf).softmax(-1).where(kept_TE, 0)
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            valid_T=valid_T,
            own_loss=own_loss,
            expert_TK=torch.arange(logits_TE.shape[1], device=logits_TE.device).expand(logits_TE.shape),
            gate_TK=gate_TE,
            sent_TK=kept_TE,
        )

    def _best_of_batch(self, scores_TE: Tensor, valid_T: Tensor | None) -> Tensor:
        """bool ``[T, E]``: each expert's m best valid tokens."""
        T, E = scores_TE.shape
        if valid_T is not None:
            scores_TE = scores_TE.masked_fill(~valid_T[:, None], -torch.inf)
        order_TE = scores_TE.argsort(dim=0, descending=True, stable=True)
        place_TE = torch.arange(T, device=scores_TE.device)[:, None].expand(T, E)
        rank_TE = torch.zeros_like(order_TE).scatter(0, order_TE, place_TE)
        if valid_T is None:
            return rank_TE < max(self.spec.top_k * T // E, 1)
        most = (self.spec.top_k * valid_T.sum() // E).clamp(min=1)
        return (rank_TE < most) & valid_T[:, None]

    def _threshold_loss(
        self, passes_TE: Tensor, kept_TE: Tensor, scores_TE: Tensor, valid_T: Tensor | None
    ) -> LossTerm:
        """The loss of the class's docstring."""
        above_TE = scores_TE - self.threshold_E.to(scores_TE.dtype)
        by_T = ((passes_TE.to(above_TE.dtype) - kept_TE.to(above_TE.dtype)) * above_TE).sum(1)
        if valid_T is None:
            return LossTerm(value=by_T.sum() / max(by_T.shape[0], 1), weight=self.spec.threshold_weight)
        mean = by_T.where(valid_T, 0).sum() / valid_T.sum().clamp(min=1)
        return LossTerm(value=mean, weight=self.spec.threshold_weight)
