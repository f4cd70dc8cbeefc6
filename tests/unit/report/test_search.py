"""Search by results: the same results give the same points, however fast trials are and whenever a sweep is killed."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

import moekit
from moekit.cli import main
from moekit.errors import CheckpointError, MoekitError
from moekit.run import Run
from moekit_report import search
from moekit_report.search import (
    EndIfHopeless,
    Point,
    Result,
    guided,
    is_worse_than_most,
    of_trial,
    propose,
    pruning_of,
    read_points,
)
from moekit_report.sweeping import Options, Sweep, Trial, parse, plan

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
    monkeypatch.setattr(search, "_lower_is_better", lambda *given: True)


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


def test_waiting_points_are_avoided() -> None:
    sweep = parse("switch", ["a.k=1..1000"], seeds=1, tpe=30)
    results = [Result(options=(f"a.k={k}",), value=abs(k - 500), curve={}, is_pruned=False) for k in range(1, 1000, 40)]
    assert propose(sweep, results) != propose(sweep, results, [propose(sweep, results)])


def curve(*values: float) -> dict[int, float]:
    return {10 * (i + 1): value for i, value in enumerate(values)}


def test_a_trial_worse_than_the_median_ends_after_a_quarter_of_its_steps() -> None:
    others = [Result(options=(), value=v, curve=curve(3, 2, v), is_pruned=False) for v in (1.0, 1.1, 1.2, 1.3)]

    def ends(values: dict[int, float], others: list[Result] = others, *, lower: bool = True) -> bool:
        return is_worse_than_most(values, others, max_steps=40, lower_is_better=lower)

    assert ends(curve(5, 2.5)) and not ends(curve(5, 1.9))
    assert not ends(curve(5, 2.5), lower=False) and ends(curve(1, 1), lower=False)
    assert not ends({5: 9.0}) and not ends(curve(5, 2.5), others[:3]) and not ends({})
    assert not ends(curve(3, 2, 1, 9))  # it has come to its end


def test_a_trial_of_a_sweep_ends_early_is_complete_and_resumed_ends_at_once(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = parse("tiny", ["optimizer.lr=1e-3,2e-3,3e-3,4e-3,5e-3"], seeds=1, prune=True)
    plan(tmp_path, sweep)
    points = [Point(options=options, knows=4) for options in sweep.points()]
    search.replace_text(tmp_path / "points.json", search.json.dumps([vars(point) for point in points]))
    good = Result(options=(), value=0.1, curve={4: 0.1, 8: 0.1}, is_pruned=False)
    monkeypatch.setattr(search, "of_trial", lambda folder, trial: good)
    trial = Trial(options=points[4].options, seed=0)
    run = moekit.train(tiny(), list(trial.options), out=tmp_path, name=trial.name, quiet=True)
    assert run.is_complete and run.metrics["step"][-1] == 4
    monkeypatch.undo()
    found = of_trial(tmp_path, trial)
    assert found is not None and found.is_pruned and set(found.curve) == {4}
    monkeypatch.setattr(search, "of_trial", lambda folder, trial: good)
    (run.path / "summary.json").unlink()
    again = moekit.train(resume=run, quiet=True)
    assert again.is_complete and Run(again._folder).metrics["step"][-1] == 4
    assert pruning_of(tmp_path / "another" / "run") is None


def test_an_ordinary_run_has_no_pruning(run: Run) -> None:
    assert pruning_of(run.path) is None


def test_a_state_of_another_form_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the state of EndIfHopeless"):
        EndIfHopeless([]).load_state_dict({"steps": [1]})
    assert isinstance(EndIfHopeless([]), Callback)


def test_a_damaged_file_of_points_is_named(tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text("[{}]")
    with pytest.raises(MoekitError, match=r"points\.json is damaged"):
        read_points(tmp_path)


def test_without_optuna_the_extra_is_named_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "switch", "optimizer.lr=1e-3..1e-2", "--tpe", "4", "--out", str(tmp_path)]) != 0
    assert "pip install 'moekit[optuna]'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
