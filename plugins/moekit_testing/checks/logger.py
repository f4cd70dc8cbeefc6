"""Checks of loggers: ``target(spec, run)``, a ``Logger`` of Lightning. A logger whose library is missing is skipped."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from moekit.extras import MissingPackage
from moekit.training.run.hooks import RunInfo
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check, CheckSkipped
from moekit_testing.fixtures import runs


def checks(case: Case) -> Iterator[Check]:
    """The checks of a logger."""
    yield from (check_logger_class, check_logger_trains, check_logger_files, check_logger_resumes)


def check_logger_class(case: Case) -> None:
    """Builds a ``Logger`` of Lightning."""
    with tempfile.TemporaryDirectory() as folder:
        made = _raw(case, Path(folder))
    require(isinstance(made, Logger), found=type(made).__name__, expected="a lightning.pytorch.loggers.Logger")


class AtTheEnd(Callback):
    """Notes which loggers a run still has: one that raised is removed, and the run continues without it."""

    loggers: Sequence[Logger] = ()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by the Trainer."""
        self.loggers = list(trainer.loggers)


def check_logger_trains(case: Case) -> None:
    """Takes the options and metrics of a run to its end, without an exception, which would remove it from the run."""
    end = AtTheEnd()
    with tempfile.TemporaryDirectory() as folder, runs.parts_of(case):
        logger = _made(case, Path(folder))
        runs.train(Path(folder), loggers=[logger], callbacks=[end])
    kept = any(each is logger for each in end.loggers)
    require(kept, found="an exception in a run, which is reported above", expected="none to the end of the run")


def check_logger_files(case: Case) -> None:
    """Writes files in the run's folder alone, and none where the command is run."""
    with tempfile.TemporaryDirectory() as folder:
        here, run = Path(folder) / "here", Path(folder) / "run"
        here.mkdir()
        run.mkdir()
        with contextlib.chdir(here):
            _log(_made(case, run), [1, 2])
        stray = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    require(not stray, found=f"{', '.join(stray)} in the working directory", expected="files in run.folder alone")


def check_logger_resumes(case: Case) -> None:
    """Continues in the folder of a run that is resumed (``run.upto`` > 0): it deletes no file and takes more steps."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _log(_made(case, Path(folder)), [1, 2])
        before = {path for path in Path(folder).rglob("*") if path.is_file()}
        _log(_made(case, Path(folder), upto=2), [3, 4])
        lost = sorted(path.name for path in before if not path.exists())
    require(not lost, found=f"{', '.join(lost)} deleted when the run is resumed", expected="no file deleted")


def _log(logger: Logger, steps: list[int]) -> None:
    logger.log_hyperparams({"model": {"dim": 8}, "seed": 0})
    for step in steps:
        logger.log_metrics({"train/loss": 1.0 / step}, step=step)
    logger.save()
    logger.finalize("success")


def _made(case: Case, folder: Path, *, upto: int = 0) -> Logger:
    logger = _raw(case, folder, upto=upto)
    assert isinstance(logger, Logger)
    return logger


def _raw(case: Case, folder: Path, *, upto: int = 0) -> object:
    try:
        return case.component.load()(case.spec, RunInfo(folder=folder, name="kit", label="kit", upto=upto))
    except (ModuleNotFoundError, MissingPackage) as error:
        raise CheckSkipped(f"a library is missing: {error}") from error
