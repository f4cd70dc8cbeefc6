"""Along which dimension a weight is cut into shards. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

ENOUGH = 8
"""Rows of the first dimension for each rank, from which it does not matter that they do not come out even."""


def cut_of(shape: Sequence[int], ranks: int) -> int:
    """The dimension that a weight is cut along.

    The first one, whose whole rows are dealt out, unless that would leave ranks without: a bank's rows are experts, and
    a dense layer is a bank of one. Then the first dimension that divides evenly, if there is one.

    Args:
        shape: of what is cut.
        ranks: over how many.
    """
    if not shape or shape[0] >= ENOUGH * ranks:
        return 0
    return next((d for d, n in enumerate(shape) if n % ranks == 0), 0)
