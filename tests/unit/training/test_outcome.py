"""The results of a run as numbers."""

from __future__ import annotations

import math

from moekit.training.run.outcome import value_at


def test_value_at_interpolates_a_curve() -> None:
    points = ([1.0, 3.0], [10.0, 20.0])
    assert [value_at(points, x) for x in (1.0, 2.0, 3.0, 9.0)] == [10.0, 15.0, 20.0, 20.0]
    assert math.isnan(value_at(points, 0.5)) and math.isnan(value_at(([], []), 1.0))
