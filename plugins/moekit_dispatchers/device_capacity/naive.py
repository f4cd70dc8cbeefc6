"""Dropping by device, pair by pair: the reference implementation."""

from __future__ import annotations

from fractions import Fraction
from math import floor

from torch import Tensor


def naive_keep(
    expert_TK: Tensor,
    affinity_TK: Tensor,
    counts_TK: Tensor,
    exempt_T: Tensor,
    num_experts: int,
    num_devices: int,
    factor: str,
) -> Tensor:
    """bool ``keep_TK``: every device drops its lowest affinity (the last of equals) until it is within its budget.

    Args:
        expert_TK: the chosen experts.
        affinity_TK: affinity with them.
        counts_TK: False for pairs of padding and pairs that are not sent.
        exempt_T: True for tokens that lose nothing.
        num_experts: E, split over the devices in order.
        num_devices: G.
        factor: the budget divided by the even share, as it is written (``"1.0"``).
    """
    T, K = expert_TK.shape
    keep_TK = counts_TK.clone()
    budget = floor(Fraction(factor) * int(counts_TK.sum()) / num_devices)
    for device in range(num_devices):
        mine = [
            (t, k)
            for t in range(T)
            for k in range(K)
            if counts_TK[t, k] and int(expert_TK[t, k]) * num_devices // num_experts == device
        ]
        free = [pair for pair in mine if not exempt_T[pair[0]]]
        while len(mine) > budget and free:
            lowest = min(float(affinity_TK[pair]) for pair in free)
            last = [pair for pair in free if float(affinity_TK[pair]) == lowest][-1]
            keep_TK[last] = False
            mine.remove(last)
            free.remove(last)
    return keep_TK
