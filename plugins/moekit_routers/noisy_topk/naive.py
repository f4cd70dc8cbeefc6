"""Noisy top-k routing as loops over tokens and experts, from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """``chosen[t]``: the experts of token t, largest noisy logit first; ``gate_TK`` in that order; the rest by expert.

    ``load_E`` is the smooth load, None without noise.
    """

    chosen: list[list[int]]
    gate_TK: Tensor
    scores_TE: Tensor
    logits_TE: Tensor
    load_E: Tensor | None


def softmax(z: Sequence[Tensor]) -> list[Tensor]:
    """``exp(z_e) / sum_j exp(z_j)``."""
    largest = max(z_e.item() for z_e in z)
    odds = [torch.exp(z_e - largest) for z_e in z]
    return [odd / sum(odds[1:], odds[0]) for odd in odds]


def best(keys: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest keys, largest first; the lower index wins a tie."""
    return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]


def chance(e: int, z: Sequence[Tensor], noisy: Sequence[Tensor], std: Sequence[Tensor], k: int) -> Tensor:
    """``P(x, e) = Phi((z_e - kth_excluding(H, k, e)) / std_e)``, and 1 if there are not k others."""
    others = [h for i, h in enumerate(noisy) if i != e]
    if len(others) < k:
        return torch.ones_like(z[e])
    kth = others[best([h.item() for h in others], k)[-1]]
    return (1 + torch.erf((z[e] - kth) / std[e] / math.sqrt(2))) / 2


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    noise_weight_ED: Tensor,
    *,
    top_k: int,
    epsilon: float = 0.0,
    noise_TE: Tensor | None = None,
    selection_bias: Sequence[float] | None = None,
    valid: Sequence[bool] | None = None,
) -> Routed:
    """Routes each token on its own; ``noise_TE`` holds the normal noise of training; None in evaluation."""
    T, E = x_TD.shape[0], weight_ED.shape[0]
    b = selection_bias or [0.0] * E
    load = [weight_ED.new_zeros(()) for _ in range(E)]
    chosen, gates, scores, logits = [], [], [], []
    for t in range(T):
        z = [(weight_ED[e] * x_TD[t]).sum() for e in range(E)]
        noisy = z
        if noise_TE is not None:
            raw = [(noise_weight_ED[e] * x_TD[t]).sum() for e in range(E)]
            std = [torch.logaddexp(r, torch.zeros_like(r)) + epsilon for r in raw]
            noisy = [z[e] + noise_TE[t, e] * std[e] for e in range(E)]
            if valid is None or valid[t]:
                biased = [z[e] + b[e] for e in range(E)]
                biased_noisy = [noisy[e] + b[e] for e in range(E)]
                load = [load[e] + chance(e, biased, biased_noisy, std, top_k) for e in range(E)]
        picks = best([noisy[e].item() + b[e] for e in range(E)], top_k)
        chosen.append(picks)
        gates.append(torch.stack(softmax([noisy[e] for e in picks])))
        scores.append(torch.stack(softmax(z)))
        logits.append(torch.stack(z))
    load_E = None if noise_TE is None else torch.stack(load)
    if not chosen:
        return Routed([], x_TD.new_zeros(0, top_k), x_TD.new_zeros(0, E), x_TD.new_zeros(0, E), load_E)
    return Routed(chosen, torch.stack(gates), torch.stack(scores), torch.stack(logits), load_E)
