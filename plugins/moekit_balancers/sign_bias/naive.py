"""The sign rule as a loop over experts, straight from the equation. What ``module.py`` is held to."""

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
