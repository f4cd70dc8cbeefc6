"""The end of a trial that is worse than most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

import moekit
from moekit.errors import CheckpointError
from moekit.run import Run
from moekit_report import pruning
from moekit_report.optuna_study import Result
from moekit_report.pruning import EndIfHopeless, pruning_of
from moekit_report.search import Point, of_trial
from moekit_report.sweeping import Trial, parse, plan

Make = Callable[..., dict[str, Any]]


def test_a_trial_of_a_sweep_ends_early_is_complete_and_resumed_ends_at_once(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    sweep = parse("tiny", ["optimizer.lr=1e-3,2e-3,3e-3,4e-3,5e-3"], seeds=1, prune=True)
    plan(tmp_path, sweep)
    points = [Point(options=options, knows=4) for options in sweep.points()]
    (tmp_path / "points.json").write_text(json.dumps([vars(point) for point in points]))
    good = Result(options=(), value=0.1, curve={4: 0.1, 8: 0.1}, is_pruned=False)
    monkeypatch.setattr(pruning, "of_trial", lambda folder, trial: good)
    trial = Trial(options=points[4].options, seed=0)
    run = moekit.train(tiny(), list(trial.options), out=tmp_path, name=trial.name, quiet=True)
    assert run.is_complete and run.metrics["step"][-1] == 4
    monkeypatch.undo()
    found = of_trial(tmp_path, trial)
    assert found is not None and found.is_pruned and set(found.curve) == {4}
    monkeypatch.setattr(pruning, "of_trial", lambda folder, trial: good)
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
