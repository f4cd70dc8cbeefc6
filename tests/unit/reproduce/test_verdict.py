"""The statistical rule: Student's t against tables, and each verdict at its limits."""

from __future__ import annotations

import math

import pytest

from moekit_reproduce.verdict import Interval, interval, t_cdf, t_quantile, verdict


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 6.3138), (2, 2.9200), (3, 2.3534), (4, 2.1318), (9, 1.8331), (24, 1.7109), (120, 1.6577)]
)
def test_the_quantile_of_student_s_t_is_that_of_tables(df: int, expected: float) -> None:
    assert t_quantile(0.95, df) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("df", range(1, 12))
def test_the_distribution_is_symmetric_and_reaches_one(df: int) -> None:
    assert t_cdf(0.0, df) == 0.5
    assert t_cdf(1.3, df) + t_cdf(-1.3, df) == pytest.approx(1)
    assert t_cdf(1e9, df) == pytest.approx(1)


@pytest.mark.parametrize(("p", "df"), [(0.5, 3), (1.0, 3), (0.95, 0)])
def test_a_quantile_out_of_range_is_refused(p: float, df: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.5 < p < 1 and df >= 1"):
        t_quantile(p, df)


def test_the_interval_of_three_values_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 2.9199856 / math.sqrt(3)  # the standard deviation is 1
    assert (found.mean, found.low, found.high) == (2.0, pytest.approx(2 - half), pytest.approx(2 + half))


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval([0.75] * 4) == Interval(mean=0.75, low=0.75, high=0.75)


@pytest.mark.parametrize("values", [[1.0], [1.0, math.inf], [math.nan, 1.0, 2.0]])
def test_one_value_or_one_that_is_not_finite_says_nothing(values: list[float]) -> None:
    found = interval(values)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert verdict(found, 0.1) == verdict(found, 0) == verdict(found, -0.1) == "too noisy to say"


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="the mean of no values"):
        interval([])


@pytest.mark.parametrize(
    ("low", "high", "at_least", "expected"),
    [
        (0.2, 0.3, 0.2, "holds"),
        (0.19, 0.3, 0.2, "direction only"),
        (0.01, 0.02, 0.2, "direction only"),
        (-0.01, 0.19, 0.2, "does not hold here"),
        (-0.3, -0.1, 0.2, "does not hold here"),
        (-0.01, 0.21, 0.2, "too noisy to say"),
        (0.001, 0.5, 0.0, "holds"),
        (-0.1, 0.1, 0.0, "too noisy to say"),
        (-0.2, -0.1, 0.0, "does not hold here"),
        (0.0, 0.0, 0.0, "does not hold here"),  # no difference at all, where one is claimed
        (0.0, 0.0, -0.01, "holds"),  # no difference at all, where none is claimed
        (-0.009, 0.001, -0.01, "holds"),
        (-0.02, 0.001, -0.01, "too noisy to say"),
        (-0.03, -0.02, -0.01, "does not hold here"),
    ],
)
def test_each_verdict_at_its_limits(low: float, high: float, at_least: float, expected: str) -> None:
    assert verdict(Interval(mean=(low + high) / 2, low=low, high=high), at_least) == expected


def test_a_true_threshold_is_called_reached_in_at_most_one_of_twenty_experiments() -> None:
    """The rate of wrong verdicts is the stated one: the mean is exactly at the threshold's lower side, 0."""
    from random import Random

    draw = Random(0)
    found = [verdict(interval([draw.gauss(0, 1) for _ in range(3)]), 0.0) for _ in range(4000)]
    assert found.count("holds") / len(found) == pytest.approx(0.05, abs=0.012)
    assert found.count("does not hold here") / len(found) == pytest.approx(0.05, abs=0.012)
