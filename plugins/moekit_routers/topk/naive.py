"""Top-k routing as loops over tokens, groups and experts, from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """``chosen[t]``: the experts of token t, best first; ``gate_TK`` and ``sent`` in that order; scores of all experts.

    ``sent[t]`` is all True without a threshold.
    """

    chosen: list[list[int]]
    sent: list[list[bool]]
    gate_TK: Tensor
    scores_TE: Tensor
    logits_TE: Tensor


def score(z: list[Tensor], kind: str) -> list[Tensor]:
    """The affinity of each logit: ``exp(z_e) / sum_j exp(z_j)``, or ``1 / (1 + exp(-z_e))``."""
    if kind == "sigmoid":
        return [torch.sigmoid(z_e) for z_e in z]
    largest = max(z_e.item() for z_e in z)
    odds = [torch.exp(z_e - largest) for z_e in z]
    return [odd / sum(odds[1:], odds[0]) for odd in odds]


def best(keys: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest keys, largest first; the lower index wins a tie."""
    return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]


def choose(keys: Sequence[float], top_k: int, groups: int, top_groups: int, group_score: str) -> list[int]:
    """The top_k best experts of the top_groups best groups."""
    size = len(keys) // groups
    ranks = []
    for g in range(groups):
        members = sorted(keys[g * size : (g + 1) * size], reverse=True)
        ranks.append(members[0] if group_score == "max" else members[0] + members[1])
    kept = best(ranks, top_groups)
    return best([key if e // size in kept else -math.inf for e, key in enumerate(keys)], top_k)


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    *,
    top_k: int,
    kind: str = "softmax",
    score_over: str = "all",
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scale: float = 1.0,
    logit_bias: Sequence[Tensor] | None = None,
    selection_bias: Sequence[float] | None = None,
    send_threshold: float | None = None,
    u_TK: Tensor | None = None,
) -> Routed:
    """Routes each token on its own.

    ``u_TK`` holds uniform random numbers: a choice k after the first is sent if ``g_k / send_threshold > u_k``.
    """
    E = weight_ED.shape[0]
    b = selection_bias or [0.0] * E
    chosen, sent, gates, scores, logits = [], [], [], [], []
    for t, x in enumerate(x_TD):
        z = [(weight_ED[e] * x).sum() for e in range(E)]
        if logit_bias is not None:
            z = [z[e] + logit_bias[e] for e in range(E)]
        s = score(z, kind)
        keys = [(s if score_over == "all" else z)[e].item() + b[e] for e in range(E)]
        picks = choose(keys, top_k, groups, top_groups, group_score)
        g = [s[e] for e in picks] if score_over == "all" else score([z[e] for e in picks], kind)
        if renormalize:
            if max(z[e].item() for e in picks) < -500:  # a sigmoid is then exp(z), which fp64 may not represent
                g = score([z[e] for e in picks], "softmax")
            total = sum(g[1:], g[0])
            g = [g_e / total for g_e in g]
        sends = [True] * top_k
        if send_threshold is not None and u_TK is not None:
            sends = [k == 0 or g[k].item() / send_threshold > u_TK[t, k].item() for k in range(top_k)]
        sent.append(sends)
        chosen.append(picks)
        gates.append(torch.stack([scale * g_e for g_e in g]))
        scores.append(torch.stack(s))
        logits.append(torch.stack(z))
    if not chosen:
        return Routed([], [], x_TD.new_zeros(0, top_k), x_TD.new_zeros(0, E), x_TD.new_zeros(0, E))
    return Routed(chosen, sent, torch.stack(gates), torch.stack(scores), torch.stack(logits))
