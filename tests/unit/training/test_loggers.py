"""Loggers: a run logs to them, and a resumed run continues in the same place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger
from rich.console import Console

from moekit import load
from moekit.extras import MissingPackage
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import RunInfo
from moekit.training.run.parts import build_parts
from moekit.training.run.train import train

Make = Callable[..., dict[str, Any]]


def run(recipe: Make, logger: dict[str, Any], root: Path) -> RunFolder:
    """A run of 4 steps, resumed up to 6."""
    trainer = {"accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False, "logger": {"mine": logger}}
    folder = None
    for steps in (4, 6):
        tree = recipe(schedule=None, trainer={**trainer, "max_steps": steps})
        outcome = train(load(tree), root=root, resume=folder, console=Console(quiet=True))
        assert outcome is not None
        folder = RunFolder(outcome.folder)
    assert folder is not None
    return folder


@pytest.mark.usefixtures("quiet_lightning")
def test_mlflow_logs_both_parts_to_one_run(recipe: Make, tmp_path: Path) -> None:
    client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = run(recipe, {"use": "mlflow", "experiment": "tried", "uri": uri}, tmp_path / "runs")
    client = client_of(uri)
    experiment = client.get_experiment_by_name("tried")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    assert found.data.params["seed"] == "0" and found.data.tags["moekit_folder"] == str(folder.path.absolute())


@pytest.mark.usefixtures("quiet_lightning")
def test_wandb_logs_offline_to_the_folder(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run(recipe, {"use": "wandb", "offline": True, "tags": ["a"]}, tmp_path / "runs")
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one id, which a sync joins


@pytest.mark.usefixtures("quiet_lightning")
def test_a_csv_logger_by_class_gets_every_metric(recipe: Make, tmp_path: Path) -> None:
    logger = {"class": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "csv"), "name": "mine"}
    run(recipe, logger, tmp_path / "runs")
    folders = sorted((tmp_path / "csv" / "mine").iterdir())
    lines = [line for folder in folders for line in (folder / "metrics.csv").read_text().splitlines()]
    assert any("val/loss" in line for line in lines)
    steps = {line.split(",")[lines[0].split(",").index("step")] for line in lines if line[:1].isdigit()}
    assert steps and (folders[0] / "hparams.yaml").read_text().count("deepseek") == 0


def test_a_missing_package_of_a_logger_is_reported_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = load("jacobs1991", ["trainer.logger.mine=wandb"])
    said = r"'wandb' needs wandb, .*\n  pip install 'moekit\[wandb\]'\n.*logger 'lightning/wandb'"
    with pytest.raises(MissingPackage, match=said):
        build_parts(recipe, "logger", RunInfo(folder=tmp_path, name="n", label="n"))


class Failing(Logger):
    """Raises in one method; in ``save``, not before there is something to save."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.logged = False

    name = version = "failing"

    def _raise(self, at: str) -> None:
        if at == self.at:
            raise RuntimeError(f"no luck in {at}")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._raise("log_hyperparams")

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.logged = True
        self._raise("log_metrics")

    def save(self) -> None:
        if self.logged:
            self._raise("save")


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize("at", ["log_hyperparams", "log_metrics", "save"])
def test_a_logger_that_fails_is_reported_once_and_training_continues(
    recipe: Make, tmp_path: Path, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = {"accelerator": "cpu", "max_steps": 4, "val_check_interval": 2, "enable_progress_bar": False}
    outcome = train(load(recipe(trainer=trainer)), root=tmp_path, console=Console(quiet=True), loggers=[Failing(at)])
    assert outcome is not None and outcome.steps == 4 and (outcome.folder / "metrics.csv").is_file()
    (message,) = [record.message for record in caplog.records if "logger Failing" in record.message]
    assert message == f"logger Failing: RuntimeError: no luck in {at}\n  training continues without it"
