"""The log of a run: one CSV file that a resumed run continues, and the same values in TensorBoard."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from moekit.training.run import event_file, metrics_log
from moekit.training.run.metrics_log import LogWrites, RunLog, lost_rows, points_of, read_metrics, salvage_metrics


def test_a_resumed_log_drops_later_rows_and_appends(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.csv")
    for step in (2, 4, 6):
        log.log_metrics({"train/loss": step / 10}, step)
    log.log_metrics({"val/loss": 0.25}, 4)
    assert not log.csv_file.exists()  # training does not wait for a disk
    log.finalize("success")
    assert log.csv_file.read_text() == "step,train/loss,val/loss\n2,0.2,\n4,0.4,0.25\n6,0.6,\n"
    again = RunLog(tmp_path / "metrics.csv", last_step=4)
    again.log_metrics({"train/loss": 0.55}, 6)
    again.save()
    rows = read_metrics(again.csv_file)
    assert points_of(rows, "train/loss") == ([2.0, 4.0, 6.0], [0.2, 0.4, 0.55])
    assert points_of(rows, "val/loss", x="train/loss") == ([0.4], [0.25])


def test_tensorboard_gets_the_same_values_as_the_file(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path / "metrics.csv", tmp_path / "tensorboard")
    log.log_metrics({"train/loss": 0.5}, 7)
    log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (point,) = events.Scalars("train/loss")
    assert (point.step, point.value) == (7, 0.5)


def test_tensorboard_drops_the_later_steps_of_a_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for upto, steps in ((0, (2, 4, 6)), (4, (5,))):
        log = RunLog(tmp_path / "metrics.csv", tmp_path / "tensorboard", last_step=upto)
        for step in steps:
            log.log_metrics({"train/loss": 0.5}, step)
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [2, 4, 5]


GOOD = b"step,a,b\n1,0.5,\n2,0.25,7\n"


@pytest.mark.parametrize(
    ("contents", "rows", "damage"),
    [
        (GOOD, {1: {"a": 0.5}, 2: {"a": 0.25, "b": 7.0}}, ""),
        (GOOD.replace(b"\n", b"\r\n"), {1: {"a": 0.5}, 2: {"a": 0.25, "b": 7.0}}, ""),
        (GOOD[:-1], {1: {"a": 0.5}}, "has 1 damaged line of 2"),
        (GOOD[:-4], {1: {"a": 0.5}}, "has 1 damaged line of 2"),
        (GOOD.replace(b"0.5", b"\xff\x00"), {2: {"a": 0.25, "b": 7.0}}, "has 1 damaged line of 2"),
        (GOOD + b'3,"\n4,1,2,3\n', {1: {"a": 0.5}, 2: {"a": 0.25, "b": 7.0}}, "has 2 damaged lines of 4"),
        (GOOD + b"2,1,1\n", {1: {"a": 0.5}, 2: {"a": 1.0, "b": 1.0}}, "has 1 damaged line of 3"),
        (GOOD + b"0,1,1\n", {}, "has steps that do not ascend"),
        (b"", {}, "has no header of metrics"),
        (b"\x80" * 50, {}, "has no header of metrics"),
    ],
)
def test_whole_rows_of_a_damaged_file_are_kept(
    tmp_path: Path, contents: bytes, rows: dict[int, Any], damage: str
) -> None:
    (tmp_path / "metrics.csv").write_bytes(contents)
    assert salvage_metrics(tmp_path / "metrics.csv") == (rows, damage)
    assert salvage_metrics(tmp_path / "none") == ({}, "")
    assert salvage_metrics(tmp_path) == ({}, "cannot be read: Is a directory")


def test_a_log_that_ends_before_the_checkpoint_lacks_rows() -> None:
    assert lost_rows("", [2, 4], 4) == ""
    assert lost_rows("", [2], 4) == "lacks steps after 2, up to 4"
    assert lost_rows("is damaged", [], 4) == "is damaged, and lacks steps after 0, up to 4"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_logs_that_cannot_be_written_are_reported_once_and_catch_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """First the one file, then the other; then there is room again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    log = RunLog(tmp_path / "metrics.csv", tmp_path / "tensorboard", writes=LogWrites(said.append))

    def full(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    for patched, name in ((metrics_log, "replace_file"), (event_file, "make_directory")):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, full)
            log.log_metrics({"a": 0.5}, len(log.rows) + 1)
            log.save()
            log.save()
    assert [line for line in said if "cannot write" in line] == said[:1] + said[2:3]
    assert f"cannot write {tmp_path / 'metrics.csv'}: {os.strerror(number)}\n  training continues" in said[0]
    log.log_metrics({"a": 0.25}, 3)
    log.finalize("success")
    assert said[-1] == "\nall logs are written again" and read_metrics(log.csv_file).keys() == {1, 2, 3}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("a")] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_half_an_event_of_a_failed_write_is_cut_off(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = event_file.EventFile(tmp_path, 1)
    events.add({"a": 0.5}, 1)
    events.write()
    with events.path.open("ab") as file:
        file.write(b"half an event")
    events.add({"a": 0.25}, 2)
    events.write()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("a")] == [(1, 0.5), (2, 0.25)]


def test_logs_that_stay_unwritten_are_named_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "metrics.csv").mkdir()
    log = RunLog(tmp_path / "metrics.csv", writes=LogWrites(said.append))
    log.log_metrics({"a": 0.5}, 1)
    log.finalize("success")
    assert said[-1] == f"\n{tmp_path / 'metrics.csv'} is incomplete: Is a directory"
