"""Both rules as loops over experts, from the equations."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def step(bias: Sequence[float], load: Sequence[int], rate: float) -> list[float]:
    """``b_e + rate * sign(mean(c) - c_e)`` for every expert e."""
    mean = Fraction(sum(load), len(load))
    moved = []
    for b, c in zip(bias, load, strict=True):
        if c < mean:
            moved.append(b + rate)
        elif c > mean:
            moved.append(b - rate)
        else:
            moved.append(b)
    return moved


def step_proportional(bias: Sequence[float], load: Sequence[int], rate: float) -> list[float]:
    """``b_e + rate * (mean(c) - c_e) / mean(c)`` for every expert e; no load moves nothing."""
    mean = Fraction(sum(load), len(load))
    return [b + rate * float((mean - c) / mean) if mean else b for b, c in zip(bias, load, strict=True)]
