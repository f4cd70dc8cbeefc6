"""Top-k routing in all orders that papers use: score and choose, choose and score, choose within groups.

Unlike many implementations, ties are defined (the lowest expert index wins), masked groups are -inf (0 would beat a
negative ``score + bias``), and the selection bias never enters a gate. Reference implementation: ``naive.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.router_math import FEW_KEYS, first_top_k, router_logits
from moekit.routing import TokenChoice
from moekit_routers.topk import TopK


class TopKRouter(Router):
    """Each token takes k experts: ``S_t`` = the k largest of ``s_t + b``; gates are ``s_te`` of those, without b.

    Source: the options are the columns of one table. Softmax, then top-k: GShard 2020, Switch 2021, DeepSeekMoE 2024.
    ``score_over=chosen``: Shazeer 2017 (without noise), Mixtral, gpt-oss (softmax), Llama 4 (sigmoid).
    Groups: DeepSeek-V2 2024 (``max``); DeepSeek-V3 2024, eq. 12 to 16 (``sigmoid``, ``top2_sum``, renormalised,
    scaled). ``input_jitter``: Switch 2021. ``send_threshold``: GShard 2020, algorithm 1 (.5: the second expert is sent
    if 2·g2 > u, u uniform); ST-MoE 2022, appendix G (.2, and every choice after the first).

    Shapes and dtypes: ``x_TD``, any float; logits, scores and gates are fp32, or fp64 for fp64 tokens or weights,
    under any autocast. ``expert_TK`` is int64, best expert first. ``scores_TE`` is the score over all experts without
    bias, under ``score_over=chosen`` too, so that balancers see every expert.

    Ties: the lowest expert index wins, on every device. A token with NaN gets k distinct experts and NaN gates; other
    tokens are not affected. Padding is read as zeros.

    Sending: under ``send_threshold`` and in training ``sent_TK`` says which choices are sent: the first always, others
    with probability min(1, g / threshold), g being the gate after renormalising and before scaling. Gates of sent
    choices are not rescaled. In evaluation all are sent, because nothing random may happen there (mesh's code samples
    in evaluation too).

    Selection bias: added to the keys of the choice, affinities under ``score_over=all`` and logits under ``chosen``. It
    gets no gradient.

    Gradient: reaches the weight and ``x_TD`` through the gates of the chosen and through ``scores_TE``; the choice has
    none.

    Raises:
        MoekitError: top_k or groups do not fit the number of experts.
    """

    def __init__(self, spec: TopK, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(spec.check_experts(dims.num_experts)):
            raise MoekitError("router topk: " + "; ".join(problems))
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
    ) -> TokenChoice:
        """Routes T tokens: score, choose, gate."""
        spec = self.spec
        logits_TE = router_logits(self._jittered(x_TD), self.weight_ED, self.bias_E, valid_T)
        scores_TE = self._score(logits_TE)
        expert_TK = self._choose(scores_TE if spec.score_over == "all" else logits_TE, selection_bias_E)
        if spec.renormalize:  # from logits, since scores may be too small to be divided by their sum
            chosen_TK = logits_TE.gather(1, expert_TK)
            gate_TK = (F.logsigmoid(chosen_TK) if spec.score == "sigmoid" else chosen_TK).softmax(-1)
        elif spec.score_over == "all":
            gate_TK = scores_TE.gather(1, expert_TK)
        else:
            gate_TK = self._score(logits_TE.gather(1, expert_TK))
        sent_TK = self._sent(gate_TK)
        if spec.scale != 1:
            gate_TK = gate_TK * spec.scale
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            sigmoid=spec.score == "sigmoid",
            valid_T=valid_T,
            expert_TK=expert_TK,
            gate_TK=gate_TK,
            sent_TK=sent_TK,
        )

    def _score(self, logits_TX: Tensor) -> Tensor:
        return logits_TX.softmax(-1) if self.spec.score == "softmax" else logits_TX.sigmoid()

    def _choose(self, key_TE: Tensor, selection_bias_E: Tensor | None) -> Tensor:
        """``expert_TK``: the k best by ``key + bias``, within the best groups."""
        key_TE = key_TE.detach()
        if selection_bias_E is not None:
            key_TE = key_TE + selection_bias_E.to(key_TE.dtype)
        if selection_bias_E is not None or self.spec.score_over == "chosen":
            key_TE = above_inf(key_TE)
        if self.spec.groups > 1:
            key_TE = self._within_best_groups(key_TE)
        return first_top_k(key_TE, self.spec.top_k)

    def _within_best_groups(self, key_TE: Tensor) -> Tensor:
        """The keys, -inf outside each token's best groups."""
        T, E = key_TE.shape
        key_TGX = key_TE.view(T, self.spec.groups, E // self.spec.groups)
        if self.spec.group_score == "max":
            best_TG = key_TGX.amax(-1)
        else:
            best_TG = top_two_sum(key_TGX)
        group_TX = first_top_k(above_inf(best_TG), self.spec.top_groups or self.spec.groups)
        out_TG = torch.ones_like(best_TG, dtype=torch.bool).scatter(1, group_TX, False)
        return key_TGX.masked_fill(out_TG[:, :, None], -torch.inf).flatten(1)

    def _sent(self, gate_TK: Tensor) -> Tensor | None:
        """bool: which choices are sent; None for all of them. A NaN is sent, so that its token's output is NaN."""
        threshold = self.spec.send_threshold
        if threshold is None or not self.training:
            return None
        unsent_TK = gate_TK.detach() <= threshold * torch.rand_like(gate_TK)
        first_K = torch.arange(self.spec.top_k, device=gate_TK.device) == 0
        return first_K | ~unsent_TK

    def _jittered(self, x_TD: Tensor) -> Tensor:
        eps = self.spec.input_jitter
        if not (eps and self.training):
            return x_TD
        x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        return x_TD * torch.empty_like(x_TD).uniform_(1 - eps, 1 + eps)


def top_two_sum(key_TE: Tensor) -> Tensor:
    """The sum of the two largest keys of each row, -inf included. Rows are the last dimension.

    A NaN counts as larger than any number. Not differentiable. Few keys on a CPU, as in decoding, take half the time by
    ``topk``; many of them three times as long.
    """
    if key_TE.device.type == "cpu" and key_TE.numel() <= FEW_KEYS:
        return key_TE.detach().topk(2).values.sum(-1)
    first_T1, index_T1 = key_TE.detach().max(-1, keepdim=True)
    rest_TE = key_TE.detach().scatter(-1, index_T1, -torch.inf)
    return (first_T1 + rest_TE.amax(-1, keepdim=True)).squeeze(-1)


def above_inf(key_TE: Tensor) -> Tensor:
    """The keys with -inf raised to the lowest finite number, so that -inf can mark experts that may not be chosen."""
    return key_TE.clamp(min=torch.finfo(key_TE.dtype).min)
