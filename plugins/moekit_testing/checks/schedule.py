"""Checks of learning-rate schedules: ``target(spec, total_steps)``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from moekit_testing.assertions import require
from moekit_testing.case import Case, Check


def checks(case: Case) -> Iterator[Check]:
    """The checks of a schedule."""
    yield check_schedule_factors


def check_schedule_factors(case: Case) -> None:
    """Returns for every step of a run, and after its end, a factor from 0 to 1, and not always 0."""
    for total in (1, 2, 100):
        factor = case.component.load()(case.spec, total)
        factors = [factor(step) for step in range(total + 3)]
        bad = [(step, f) for step, f in enumerate(factors) if not (math.isfinite(f) and 0 <= f <= 1)]
        require(
            not bad,
            found=f"a factor of {bad[0][1] if bad else 0} at step {bad[0][0] if bad else 0} of {total}",
            expected="0 to 1",
        )
        require(max(factors[:total]) > 0, found=f"only zeros in {total} steps", expected="a rate that trains")
