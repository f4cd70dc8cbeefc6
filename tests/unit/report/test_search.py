"""Search by results: the same results give the same points, however fast trials are and whenever a sweep is killed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moekit.errors import MoekitError
from moekit_report import search
from moekit_report.search import (
    Point,
    Result,
    guided,
    read_points,
)
from moekit_report.sweeping import Options, Sweep, Trial, parse

Make = Callable[..., dict[str, Any]]
AXES = ["optimizer.lr=1e-5..1e-1", "model.k=1,2,4", "model.n=8..64"]


def score(options: Options) -> float:
    """A valley at lr = 1e-3, k = 2."""
    values = dict(option.split("=") for option in options)
    return (math.log10(float(values["optimizer.lr"])) + 3) ** 2 + abs(int(values["model.k"]) - 2)


def swept(folder: Path, sweep: Sweep, *, jobs: int, order: random.Random, until: float = math.inf) -> list[Point]:
    """Runs a sweep of made-up results; trials end in a random order, and all stop after so many have ended."""
    running: list[Trial] = []
    upcoming = guided(folder, sweep, jobs, lambda trial: trial in DONE)
    ended, is_more = 0, True
    while ended < until and (is_more or running):
        while is_more and len(running) < jobs:
            trial = next(upcoming, "end")
            if isinstance(trial, Trial):
                if trial not in DONE:
                    running.append(trial)
            else:
                is_more = trial is None
                break
        if running:
            DONE.add(running.pop(order.randrange(len(running))))
            ended += 1
    return read_points(folder)


DONE: set[Trial] = set()


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    DONE.clear()

    def result(folder: Path, point: Point, sweep: Sweep) -> Result:
        return Result(options=point.options, value=score(point.options), curve={}, is_pruned=False)

    monkeypatch.setattr(search, "result_of", result)
    monkeypatch.setattr(search, "lower_is_better", lambda *given: True)


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_points_are_the_same_however_fast_trials_are_and_after_a_kill(tmp_path: Path, jobs: int) -> None:
    sweep = parse("switch", AXES, seeds=2, tpe=14)
    whole = swept(tmp_path / "whole", sweep, jobs=jobs, order=random.Random(1))
    assert [point.knows for point in whole] == [max(0, n + 1 - jobs) for n in range(14)]
    for seed in range(3):
        DONE.clear()
        folder, order = tmp_path / str(seed), random.Random(seed)
        swept(folder, sweep, jobs=jobs, order=order, until=order.randrange(4, 20))
        assert swept(folder, sweep, jobs=jobs, order=order) == whole


def test_later_points_are_better_and_within_their_axes(tmp_path: Path) -> None:
    sweep = parse("switch", AXES, seeds=1, tpe=40)
    points = swept(tmp_path, sweep, jobs=1, order=random.Random(0))
    values = [score(point.options) for point in points]
    assert sum(values[-10:]) < 0.5 * sum(values[:10])
    assert 8 <= min(int(point.options[2].partition("=")[2]) for point in points)


def test_a_damaged_file_of_points_is_named(tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text("[{}]")
    with pytest.raises(MoekitError, match=r"points\.json is damaged"):
        read_points(tmp_path)
