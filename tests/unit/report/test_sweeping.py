"""A sweep: its grid, its trials, and that the same command continues one that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report import sweeping
from moekit_report.sweeping import Runner, Trial, command, is_complete, parse, plan, run_of, split

Make = Callable[..., dict[str, Any]]


def test_the_grid_is_every_combination_seed_by_seed() -> None:
    sweep = parse("switch", ["optimizer.lr=1e-3,3e-3", "trainer.max_steps=4", "data.seq=8,16"], seeds=2)
    trials = sweep.trials()
    assert sweep.overrides == ("trainer.max_steps=4",)
    assert [trial.name for trial in trials[:4]] == [
        "lr=1e-3,seq=8,seed=0", "lr=1e-3,seq=16,seed=0", "lr=3e-3,seq=8,seed=0", "lr=3e-3,seq=16,seed=0",
    ]  # fmt: skip
    assert len(trials) == 8 and all(trial.seed == 1 for trial in trials[4:])
    assert trials[1].options == ("optimizer.lr=1e-3", "data.seq=16")


def test_a_random_search_takes_points_of_the_grid_the_same_every_time() -> None:
    sweep = parse("switch", ["a=1,2,3,4,5", "b=1,2,3,4,5"], seeds=2, sample=6)
    trials = sweep.trials()
    assert trials == sweep.trials() and len(trials) == len(set(trials)) == 12
    assert {trial.options for trial in trials if trial.seed == 0} == {t.options for t in trials if t.seed == 1}


def test_a_comma_inside_brackets_does_not_divide() -> None:
    assert split("[a,b],{use: topk, top_k: 2},'x,y',3") == ["[a,b]", "{use: topk, top_k: 2}", "'x,y'", "3"]
    assert Trial(options=("model.moe.router={use: topk}",), seed=0).name == "router=_use__topk_,seed=0"


@pytest.mark.parametrize(
    ("given", "seeds", "why"),
    [
        (["lr"], 1, "'lr' is not an option"),
        (["lr=1"], 1, "the sweep has one run"),
        (["seed=1,2"], 1, "a sweep counts seeds itself"),
        (["a.x=1,2"], 0, "expected 1 seed or more"),
        (["a.x={1},[1]"], 1, "would have the same name"),
    ],
)
def test_mistakes_are_named(given: list[str], seeds: int, why: str) -> None:
    with pytest.raises(MoekitError, match=why):
        parse("switch", given, seeds=seeds)


def test_a_folder_has_one_sweep(tmp_path: Path) -> None:
    one, two = (parse("switch", [f"x={values}"], seeds=1) for values in ("1,2", "1,3"))
    plan(tmp_path, one)
    plan(tmp_path, one)
    with pytest.raises(MoekitError, match="has another sweep"):
        plan(tmp_path, two)


def test_a_recipe_with_a_mistake_is_refused_before_anything_is_run(tmp_path: Path, capsys: Any) -> None:
    assert main(["sweep", "switch", "model.moe.router.top_k=1,99", "--out", str(tmp_path)]) != 0
    assert "top_k" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
        sweeping, "command", lambda folder, sweep, trial, run: [sys.executable, "-c", script, str(log), trial.name]
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


def sweep_command(recipe: Path, out: Path) -> list[str]:
    axes = ["optimizer.lr=1e-3,3e-3", "--seeds", "2"]
    return [sys.executable, "-m", "moekit", "sweep", str(recipe), *axes, "--out", str(out), "--jobs", "2", "--json"]


def stripped(found: Any) -> Any:
    """A comparison without what depends on time and place."""
    timed = ("seconds", "tokens per second", "after the same time")
    return [
        (group["label"], group["changes"], {k: v for k, v in group["values"].items() if k not in timed})
        for group in found["groups"]
    ]


@pytest.mark.slow
def test_a_sweep_killed_at_a_random_moment_resumes_and_ends_in_the_same_table(tiny: Make, tmp_path: Path) -> None:
    """Its trials die with it, and are resumed from their checkpoints."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny(trainer={"max_steps": 6, "val_check_interval": 2})))
    whole = subprocess.run(sweep_command(recipe, tmp_path / "whole"), capture_output=True, text=True, timeout=400)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    out = tmp_path / "killed"
    child = subprocess.Popen(sweep_command(recipe, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not list(out.glob("sweeps/tiny/*/*/checkpoints/last")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    runs = {path.parent for path in out.glob("sweeps/tiny/*/*/spec.yaml")}
    assert runs and not all((run / "summary.json").is_file() for run in runs)
    again = subprocess.run(sweep_command(recipe, out), capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert runs <= {path.parent for path in out.glob("sweeps/tiny/*/*/spec.yaml")}
    assert stripped(json.loads(again.stdout)) == stripped(json.loads(whole.stdout))
    labels = [group["label"] for group in json.loads(again.stdout)["groups"]]
    assert labels == ["tiny", "lr=0.003"]
    assert (out / "sweeps/tiny/compare.html").is_file()
    trial = Trial(options=("optimizer.lr=1e-3",), seed=1)
    found = run_of(out / "sweeps/tiny", trial)
    assert found is not None and found.recipe.seed == 1
