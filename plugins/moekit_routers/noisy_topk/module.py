"""Noisy top-k routing. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekit.contracts import Init, LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import router_logits
from moekit.routing import TokenChoice
from moekit_routers.noise import noisy_top_k
from moekit_routers.noisy_topk import NoisyTopK


class NoisyTopKRouter(Router):
    """Each token takes k experts by noisy logits ``H = W_g x + n·(softplus(W_noise x) + epsilon)``.

    Gates are the softmax over the k chosen values of H, so they sum to 1. n is standard normal noise, new for every
    token and expert, in training alone; in evaluation H = W_g x, and no random number is used.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, eq. 3 to 5; appendix A for the smooth load. The
    epsilon is that of the authors' code.

    Shapes and dtypes: ``x_TD``, any float; logits, noise, scores and gates are fp32, or fp64 for fp64 tokens or
    weights, under any autocast. ``logits_TE`` is ``W_g x``, and ``scores_TE`` its softmax over all experts: both
    without noise. ``expert_TK`` is int64, the largest H first. ``smooth_load_E``: in training the sum over valid tokens
    of the probability that the expert would be chosen if its noise were sampled again; None in evaluation. With k = E
    it is the number of valid tokens, a constant.

    Ties: the lowest expert index wins. With ``zero_init`` all experts tie in evaluation before the first step.

    Selection bias: added to H, and to W_g x in the smooth load, for the choice alone. It gets no gradient.

    Gradient: reaches both matrices and ``x_TD`` through the gates and through ``smooth_load_E`` (its threshold too).
    Padding is read as zeros. A token with NaN gets k distinct experts and NaN gates; a NaN in a valid token also makes
    ``smooth_load_E`` NaN, as every statistic.

    Raises:
        MoekitError: top_k does not fit the number of experts.
    """

    def __init__(self, spec: NoisyTopK, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router noisy_topk: " + "; ".join(problems))
        self.spec = spec
        self.weight_ED = nn.Parameter(torch.zeros(dims.num_experts, dims.dim))
        self.noise_weight_ED = nn.Parameter(torch.zeros(dims.num_experts, dims.dim))
        if not spec.zero_init:
            bound = dims.dim**-0.5
            for weight_ED in (self.weight_ED, self.noise_weight_ED):
                nn.init.uniform_(weight_ED, -bound, bound)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        """Routes T tokens: noise, choose, gate."""
        logits_TE, raw_TE = router_logits(x_TD, self.weight_ED, None, valid_T), None
        if self.training:
            raw_TE = router_logits(x_TD, self.noise_weight_ED, None, valid_T)
        bias_E = None if selection_bias_E is None else _bias(selection_bias_E, logits_TE.dtype)
        expert_TK, gate_TK, chance_TE = noisy_top_k(logits_TE, raw_TE, self.spec.top_k, self.spec.noise_epsilon, bias_E)
        if chance_TE is not None and valid_T is not None:
            chance_TE = chance_TE * valid_T[:, None]
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=logits_TE.softmax(-1),
            valid_T=valid_T,
            smooth_load_E=None if chance_TE is None else chance_TE.sum(0),
            expert_TK=expert_TK,
            gate_TK=gate_TK,
        )

    def init_weights(self, init: Init) -> None:
        """Initialises both matrices by ``init``, or to 0 under ``zero_init``."""
        for weight_ED in (self.weight_ED, self.noise_weight_ED):
            if self.spec.zero_init:
                nn.init.zeros_(weight_ED)
            else:
                init.draw(weight_ED)


def _bias(selection_bias_E: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias, with -inf replaced by a finite number that still bans an expert and is safe in sums."""
    return selection_bias_E.detach().to(dtype).clamp(min=torch.finfo(dtype).min / 8)
