"""SparseMixer routing as loops over tokens, choices and experts, from the equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    *,
    top_k: int,
    r: float,
    noise_KTE: Tensor | None = None,
    u_KT: Tensor | None = None,
) -> tuple[list[list[int]], Tensor, Tensor]:
    """The experts of each token in the order of choosing, their gates ``[T, K]``, and the logits.

    Args:
        x_TD: tokens.
        weight_ED: one row for each expert.
        top_k: experts of a token.
        r: the bound on how far a close expert is below the best one is 2r.
        noise_KTE: in training, a random number for each choice, token and expert: Gumbel's.
        u_KT: in training, uniform random numbers in [0, 1).
    """
    E = weight_ED.shape[0]
    chosen, gates, logits = [], [], []
    for t, x in enumerate(x_TD):
        z = [(weight_ED[e] * x).sum() for e in range(E)]
        picks: list[int] = []
        row = []
        for k in range(top_k):
            left = [e for e in range(E) if e not in picks]
            best = max(left, key=lambda e: (z[e].item(), -e))
            close = [e for e in left if is_close(z[e].item(), z[best].item(), r)]
            pick = best
            if noise_KTE is not None:
                noise = noise_KTE[k, t]
                pick = max(close, key=lambda e: (z[e].item() + noise[e].item(), -e))
            odds = {e: torch.exp(z[e] - z[best].item()) for e in close}
            gate = odds[pick] / sum(odds.values(), torch.zeros_like(odds[pick]))
            if u_KT is not None and pick != best and u_KT[k, t].item() >= 0.25:
                gate = gate + (gate / 3 - gate).detach()  # a third, with the gradient of the whole
            picks.append(pick)
            row.append(gate)
        chosen.append(picks)
        gates.append(torch.stack(row))
        logits.append(torch.stack(z))
    if not chosen:
        return [], x_TD.new_zeros(0, top_k), x_TD.new_zeros(0, E)
    return chosen, torch.stack(gates), torch.stack(logits)


def is_close(z: float, best: float, r: float) -> bool:
    """``(best - z) / max(|z|, best) <= 2r``; a logit is close to itself, also where both are 0."""
    scale = max(abs(z), best)
    return z == best or (math.isfinite(scale) and (best - z) / scale <= 2 * r)
