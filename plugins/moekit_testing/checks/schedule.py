"""Checks of learning-rate schedules: ``target(spec, total_steps)``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from moekit_testing.assertions import require
from moekit_testing.case import Case, Check


def checks(case: Case) -> Iterator[Check]:
    """The checks of a schedule."""
    yield from (check_schedule_factors, check_schedule_repeats)


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


def check_schedule_repeats(case: Case) -> None:
    """Is a function of the step alone: a run that is resumed in the middle has the factors of an undisturbed one."""
    total = 20
    forwards, backwards = (case.component.load()(case.spec, total) for _ in range(2))
    expected = [forwards(step) for step in range(total)]
    for step in reversed(range(total)):
        found = backwards(step)
        require(
            found == expected[step], found=f"a factor of {found} at step {step}, alone", expected=f"{expected[step]}"
        )
