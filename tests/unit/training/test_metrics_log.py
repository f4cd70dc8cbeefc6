"""The log of a run: one CSV file that a resumed run continues, and the same values in TensorBoard."""

from __future__ import annotations

from pathlib import Path

from moekit.training.run.metrics_log import RunLog, points_of, read_metrics


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
    again.write()
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
