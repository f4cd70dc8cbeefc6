"""The trials of a sweep: side by side, resumed after a kill, and the same table in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekit.run import Run
from moekit_report import trials
from moekit_report.sweeping import Trial, is_complete, parse, run_of
from moekit_report.trials import Runner, command

Make = Callable[..., dict[str, Any]]


def test_trials_run_side_by_side_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = parse("switch", ["x=1,2,3,4"], seeds=1)
    log = tmp_path / "log.txt"
    script = (
        "import os, pathlib, sys, time; log = pathlib.Path(sys.argv[1]); name = sys.argv[2]\n"
        "with log.open('a') as f: f.write(f'begin {name} {os.environ[\"OMP_NUM_THREADS\"]}\\n')\n"
        "time.sleep(0.3)\n"
        "with log.open('a') as f: f.write(f'end {name}\\n')\n"
        "sys.exit(3 if 'x=2' in name else 0)"
    )
    monkeypatch.setattr(
        trials, "command", lambda folder, sweep, trial, run: [sys.executable, "-c", script, str(log), trial.name]
    )
    runner = Runner(tmp_path, sweep, jobs=2, threads=3)
    seen: list[int] = []
    runner.run(lambda: seen.append(len(runner.running)), every=0.01)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(line[1:] for line in lines if line[0] == "begin") == [[t.name, "3"] for t in sweep.trials()]
    assert {trial.name: code for trial, code in runner.failed.items()} == {"x=2,seed=0": 3}
    assert max(seen) == 2 and runner.running == {}


def test_a_trial_begins_resumes_or_is_complete(run: Run, tmp_path: Path) -> None:
    sweep = parse("switch", ["optimizer.lr=1,2", "trainer.max_steps=4"], seeds=1)
    trial = sweep.trials()[0]
    assert run_of(tmp_path, trial) is None and not is_complete(None)
    new = command(tmp_path, sweep, trial, None)
    assert new[3:] == [
        "train", "switch", "trainer.max_steps=4", "optimizer.lr=1", "seed=0", "--out", str(tmp_path), "--name",
        "lr=1,seed=0", "--no-compare",
    ]  # fmt: skip
    assert command(tmp_path, sweep, trial, run)[3:] == ["train", "--resume", str(run.path), "--no-compare"]
    assert is_complete(run)
    (tmp_path / trial.name / "2026-01-01_00-00-00").mkdir(parents=True)
    (tmp_path / trial.name / "2026-01-01_00-00-00" / "spec.yaml").write_text("")
    begun = run_of(tmp_path, trial)
    assert begun is not None and not is_complete(begun) and command(tmp_path, sweep, trial, begun) == new


SWEEPS = {
    "grid": ["optimizer.lr=1e-3,2e-3,3e-3,4e-3", "--seeds", "3"],
    "tpe": ["optimizer.lr=1e-4..1e-1", "--tpe", "8", "--prune"],
}


def sweep_command(recipe: Path, out: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "moekit", "sweep", str(recipe), *options, "--out", str(out), "--jobs", "2", "--json"]


def stripped(found: Any) -> Any:
    """A comparison without what depends on time and place."""
    timed = ("seconds", "tokens per second", "after the same time")
    return [
        (group["label"], group["changes"], {k: v for k, v in group["values"].items() if k not in timed})
        for group in found["groups"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("search", SWEEPS)
def test_a_sweep_killed_at_a_random_moment_resumes_and_ends_in_the_same_table(
    tiny: Make, tmp_path: Path, search: str
) -> None:
    """Its trials die with it, and are resumed from their checkpoints."""
    if search == "tpe":
        pytest.importorskip("optuna")
    recipe, options = tmp_path / "tiny.yaml", SWEEPS[search]
    recipe.write_text(yaml.safe_dump(tiny(trainer={"max_steps": 8, "val_check_interval": 2})))
    whole = subprocess.run(sweep_command(recipe, tmp_path / "whole", options), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    expected = json.loads(whole.stdout)
    assert sum(len(group["runs"]) for group in expected["groups"]) == (12 if search == "grid" else 8)
    out, generator = tmp_path / "killed", random.Random()
    for kill in range(2):
        child = subprocess.Popen(sweep_command(recipe, out, options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        begun = len(list(out.glob("sweeps/tiny/*/*/checkpoints/last"))) + generator.randint(1, 3)
        deadline = time.monotonic() + 200
        while len(list(out.glob("sweeps/tiny/*/*/checkpoints/last"))) < begun and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 1))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        runs = {path.parent for path in out.glob("sweeps/tiny/*/*/spec.yaml")}
        assert runs and len(list(out.glob("sweeps/tiny/*/*/summary.json"))) < (12 if search == "grid" else 8), kill
    again = subprocess.run(sweep_command(recipe, out, options), capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert runs <= {path.parent for path in out.glob("sweeps/tiny/*/*/spec.yaml")}
    assert stripped(json.loads(again.stdout)) == stripped(expected)
    assert (out / "sweeps/tiny/compare.html").is_file()
    if search == "grid":
        assert [group["label"] for group in expected["groups"]] == ["tiny", "lr=0.002", "lr=0.003", "lr=0.004"]
        found = run_of(out / "sweeps/tiny", Trial(options=("optimizer.lr=1e-3",), seed=1))
        assert found is not None and found.recipe.seed == 1
    else:
        steps = [group["values"]["steps"]["mean"] for group in expected["groups"]]
        assert min(steps) < 8 == max(steps)
