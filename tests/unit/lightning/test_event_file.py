"""TensorBoard's event file: what is in it, also after failed writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moekit.training.run import metrics_log
from moekit.training.run.metrics_log import LogWrites, RunLog, read_metrics
from moekit_lightning import event_file
from moekit_lightning.event_file import EventFile


def test_tensorboard_gets_the_values_of_each_step(tmp_path: Path) -> None:
    log = EventFile(tmp_path / "tensorboard")
    log.log_metrics({"train/loss": 0.5}, 7)
    log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (point,) = events.Scalars("train/loss")
    assert (point.step, point.value) == (7, 0.5)


def test_tensorboard_drops_the_later_steps_of_a_resumed_run(tmp_path: Path) -> None:
    for upto, steps in ((0, (2, 4, 6)), (4, (5,))):
        log = EventFile(tmp_path / "tensorboard", upto + 1)
        for step in steps:
            log.log_metrics({"train/loss": 0.5}, step)
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [2, 4, 5]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_logs_that_cannot_be_written_are_reported_once_and_catch_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """First the one file, then the other; then there is room again."""
    said: list[str] = []
    writes = LogWrites(said.append)
    log, file = RunLog(tmp_path / "metrics.csv", writes=writes), EventFile(tmp_path / "tensorboard", writes=writes)

    def full(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    for patched, name in ((metrics_log, "replace_file"), (event_file, "make_directory")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, full)
            step = len(log.rows) + 1
            for logger in (file, log):
                logger.log_metrics({"a": 0.5}, step)
            for logger in (file, log, file, log):
                logger.save()
    assert [line for line in said if "cannot write" in line] == said[:1] + said[2:3]
    assert f"cannot write {tmp_path / 'metrics.csv'}: {os.strerror(number)}\n  training continues" in said[0]
    for logger in (file, log):
        logger.log_metrics({"a": 0.25}, 3)
    for logger in (file, log):
        logger.finalize("success")
    assert said[-1] == "\nall logs are written again" and read_metrics(log.path).keys() == {1, 2, 3}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("a")] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_half_an_event_of_a_failed_write_is_cut_off(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.log_metrics({"a": 0.5}, 1)
    events.save()
    with events.path.open("ab") as file:
        file.write(b"half an event")
    events.log_metrics({"a": 0.25}, 2)
    events.save()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("a")] == [(1, 0.5), (2, 0.25)]
