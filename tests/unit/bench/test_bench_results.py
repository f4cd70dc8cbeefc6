"""Ratios of two variants' rounds."""

from __future__ import annotations

from moekit_bench.results import ratio


def test_a_ratio_has_best_rounds_and_quartiles_within_rounds() -> None:
    found = ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert (found.best, found.median, found.low, found.high) == (2.0, 2.0, 1.75, 3.0)
    one = ratio([3.0], [2.0])
    assert one.best == one.median == one.low == one.high == 1.5
