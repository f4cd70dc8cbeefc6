"""The log of a run: one CSV file that a resumed run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moekit.training.run.metrics_log import LogWrites, RunLog, lost_rows, points_of, read_metrics, salvage_metrics


def test_a_resumed_log_drops_later_rows_and_appends(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.csv")
    for step in (2, 4, 6):
        log.log_metrics({"train/loss": step / 10}, step)
    log.log_metrics({"val/loss": 0.25}, 4)
    assert not log.path.exists()  # training does not wait for a disk
    log.finalize("success")
    assert log.path.read_text() == "step,train/loss,val/loss\n2,0.2,\n4,0.4,0.25\n6,0.6,\n"
    again = RunLog(tmp_path / "metrics.csv", last_step=4)
    again.log_metrics({"train/loss": 0.55}, 6)
    again.save()
    rows = read_metrics(again.path)
    assert points_of(rows, "train/loss") == ([2.0, 4.0, 6.0], [0.2, 0.4, 0.55])
    assert points_of(rows, "val/loss", x="train/loss") == ([0.4], [0.25])


def test_a_log_stays_as_it_is_until_training_has_begun(tmp_path: Path) -> None:
    """A resume from an older checkpoint that fails erases no rows; one that trains does, also without new rows."""
    log = RunLog(tmp_path / "metrics.csv")
    for step in (2, 4):
        log.log_metrics({"a": step / 10}, step)
    log.save()
    before = log.path.read_bytes()
    again = RunLog(tmp_path / "metrics.csv", last_step=2)
    again.finalize("failed")
    assert log.path.read_bytes() == before
    again.save()
    assert list(read_metrics(log.path)) == [2]


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


def test_logs_that_stay_unwritten_are_named_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "metrics.csv").mkdir()
    log = RunLog(tmp_path / "metrics.csv", writes=LogWrites(said.append))
    log.log_metrics({"a": 0.5}, 1)
    log.finalize("success")
    assert said[-1] == f"\n{tmp_path / 'metrics.csv'} is incomplete: Is a directory"
