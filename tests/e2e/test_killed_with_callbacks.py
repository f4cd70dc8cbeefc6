"""Runs with callbacks and loggers from YAML, killed within a step and resumed, equals a whole one."""

from __future__ import annotations

import csv
import importlib.util
import json
from typing import Any

import pytest
from tiny_runs import Moekit, assert_same, assert_same_tensors, only_run, prepare, saved, succeeded, tensors

from moekit.training.run.metrics_log import read_metrics

STEPS = 16


@pytest.fixture(scope="module")
def moekit(tmp_path_factory: pytest.TempPathFactory) -> Moekit:
    return Moekit(prepare(tmp_path_factory.mktemp("killed")))


def options(average: str, loggers: dict[str, Any]) -> list[str]:
    stopping = "lightning.pytorch.callbacks.EarlyStopping"
    callbacks = {"mean": {"use": average}, "stop": {"class": stopping, "monitor": "val/loss", "min_delta": 100.0}}
    return [f"trainer.callbacks={json.dumps(callbacks)}", f"trainer.logger={json.dumps(loggers)}"]


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_a_killed_run_resumes_to_equal_states(average: str, moekit: Moekit) -> None:
    """``EarlyStopping`` has waited for one validation before the kill and for three after it, as without a kill."""
    loggers = {"table": {"class": "lightning.pytorch.loggers.CSVLogger", "save_dir": f"csv-{average}"}}
    swa = ["trainer.callbacks.mean.start=0"] if average == "swa" else []
    succeeded(moekit.train(f"whole-{average}", STEPS, *options(average, {}), *swa))
    killed = moekit.train(f"killed-{average}", STEPS, *options(average, loggers), *swa, kill_step=[11, 0])
    assert killed.code == -9, killed.output
    run, whole = only_run(moekit.cwd / f"killed-{average}"), only_run(moekit.cwd / f"whole-{average}")
    assert saved(run)["global_step"] == 8
    succeeded(moekit.resume(run, STEPS))
    assert_same(run, whole)
    ours, theirs = saved(run), saved(whole)
    assert_same_tensors(tensors(ours["trained_weights"]), tensors(theirs["trained_weights"]), more_than=8)
    (key,) = (key for key in ours["callbacks"] if key.startswith("EarlyStopping"))
    assert ours["callbacks"][key]["wait_count"] == 3
    assert ours["callbacks"] == theirs["callbacks"]
    files = list((moekit.cwd / f"csv-{average}").rglob("metrics.csv"))
    logged = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    losses = {int(row["step"]): float(row["train/loss"]) for row in logged if row.get("train/loss")}
    expected = {step: row["train/loss"] for step, row in read_metrics(whole / "metrics.csv").items()}
    assert losses.keys() <= expected.keys() and {9, 10, STEPS} <= losses.keys()
    assert all(losses[step] == pytest.approx(expected[step], rel=1e-6) for step in losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_killed_run_continues_the_run_of_its_logger(name: str, moekit: Moekit) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    logger = {"use": name, **({"offline": True} if name == "wandb" else {})}
    killed = moekit.train(name, STEPS, f"trainer.logger={json.dumps({'mine': logger})}", kill_step=[11, 0])
    assert killed.code == -9, killed.output
    run = only_run(moekit.cwd / name)
    succeeded(moekit.resume(run, STEPS))
    if name == "wandb":
        files = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(files) == 2 and len({file.name for file in files}) == 1
    else:
        from mlflow.tracking import MlflowClient

        (found,) = MlflowClient(f"sqlite:///{run.absolute()}/mlflow.db").search_runs(["1"])
        last = read_metrics(run / "metrics.csv")[STEPS]["train/loss"]
        assert found.data.metrics["train/loss"] == pytest.approx(last)
