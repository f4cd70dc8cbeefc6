"""Capacity, token by token: the reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor

import torch
from torch import Tensor


def naive_slots(
    tokens: int,
    choices: int,
    num_experts: int,
    factor: Fraction | str,
    count: str,
    rounding: str,
    at_least: int,
    multiple: int,
) -> int:
    """C, from the factor that is meant: as it is written (``"1.25"``), or a fraction."""
    share = Fraction(factor) * tokens / num_experts
    if count == "pairs":
        share *= choices
    slots = ceil(share) if rounding == "ceil" else floor(share) if rounding == "floor" else round(share)
    slots = max(slots, at_least)
    while slots % multiple:
        slots += 1
    return min(slots, tokens)


def naive_capacity(
    x_TD: Tensor,
    expert_TK: Tensor,
    gate_TK: Tensor,
    affinity_TK: Tensor,
    counts_TK: Tensor,
    slots: int,
    group_size: int,
    num_experts: int,
    order: str,
    expert: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, int]:
    """GShard's algorithm 1 and its relatives: a pair is computed if its expert has slots left at its turn.

    Args:
        x_TD: tokens, at least one.
        expert_TK: the experts they chose.
        gate_TK: weights on the experts' outputs.
        affinity_TK: affinity with the chosen experts.
        counts_TK: False for pairs of padding and pairs that are not sent.
        slots: C, of each expert in each group.
        group_size: tokens in a group.
        num_experts: E.
        order: position, choice, priority or affinity.
        expert: ``expert(e, x_D)``, the output of expert e for one vector.

    Returns:
        ``y_TO``, and the number of pairs without a slot.
    """
    T, K = expert_TK.shape
    y_TO = [torch.zeros_like(expert(0, x_TD[t] * 0)).detach() for t in range(T)]
    dropped = 0
    for start in range(0, T, group_size):
        tokens = range(start, start + group_size)
        if order == "position":
            queue = [(t, k) for t in tokens for k in range(K)]
        elif order == "choice":
            queue = [(t, k) for k in range(K) for t in tokens]
        elif order == "priority":
            best = {t: max([float(affinity_TK[t, k]) for k in range(K) if counts_TK[t, k]], default=0) for t in tokens}
            queue = [(t, k) for k in range(K) for t in sorted(tokens, key=lambda t: -best[t])]
        else:
            mine = [(t, k) for t in tokens for k in range(K) if counts_TK[t, k]]
            queue = sorted(mine, key=lambda pair: -float(affinity_TK[pair]))
        used = [0] * num_experts
        for t, k in queue:
            if not counts_TK[t, k]:
                continue
            e = int(expert_TK[t, k])
            if used[e] < slots:
                y_TO[t] = y_TO[t] + gate_TK[t, k] * expert(e, x_TD[t])
            else:
                dropped += 1
            used[e] += 1
    return torch.stack(y_TO), dropped
