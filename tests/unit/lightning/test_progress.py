"""The display of a running training."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import ProgressSample

from moekit.spec.fields import MetricInfo
from moekit_lightning.progress import MAX_LINES, TrainingProgress, metrics_line, validation_line


def test_metrics_are_formatted_in_one_line() -> None:
    values = {
        "train/loss": 2.5, "tokens_per_second": 12345.6, "lr": 0.003, "train/max_violation": 0.5, "train/dropped": 0.01
    }  # fmt: skip
    assert metrics_line(values, {}) == "loss 2.500  12,346 tokens/s  lr 0.003  MaxVio 0.50  dropped 1.0%"
    metrics = {
        "bits_per_byte": MetricInfo("bits per byte", headline=True),
        "blend_mse": MetricInfo("blend", live=True, digits=2),
        "exact": MetricInfo("exact"),
    }
    seen = {"train/loss": 0.1, "train/blend_mse": 0.2, "train/exact": 0.3, "train/bits_per_byte": 4.0}
    assert metrics_line(seen, metrics, "cases") == "loss 0.100  blend 0.20"
    seen = {"val/loss": 1.5, "val/bits_per_byte": 2.0, "val/exact": 0.3, "val/blend_mse": 0.2}
    assert validation_line(seen, metrics) == "bits per byte 2.000, blend 0.20, loss 1.500"


def test_progress_without_a_terminal_is_a_few_lines() -> None:
    class Run:
        global_step, max_steps = 0, 1000
        sanity_checking = False

    class Module:
        logged, logged_step = {"train/loss": 1.0}, 0

    out = StringIO()
    bar = TrainingProgress(Console(file=out, width=120), "tiny")
    run, module = Run(), Module()
    bar.on_train_start(run, module)  # type: ignore[arg-type]
    for step in range(1, 1001):
        run.global_step = step
        module.logged_step = step // 10 * 10
        bar.on_train_batch_end(run, module)  # type: ignore[arg-type]
    assert len(out.getvalue().splitlines()) == 10


@pytest.mark.parametrize("label", ["deepseek_v3", "a-run-whose-name-is-very-long-indeed"])
@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_of_80_columns_shows_a_bar_and_all_of_the_remaining_time(width: int, label: str) -> None:
    console = Console(file=StringIO(), width=width, force_terminal=True)
    bar = TrainingProgress(console, label)
    values = {"train/loss": 2.5, "tokens_per_second": 12345.6, "lr": 3e-3, "train/max_violation": 0.5}
    run = SimpleNamespace(global_step=0, max_steps=10_000)
    bar.on_train_start(run, SimpleNamespace())  # type: ignore[arg-type]
    try:
        assert bar._bar is not None
        bar._bar.live.auto_refresh = False
        run.global_step = 2_500
        bar.on_train_batch_end(run, SimpleNamespace(logged=values | {"train/dropped": 0.0}))  # type: ignore[arg-type]
        (task,) = bar._bar.tasks
        task.start_time, task.stop_time = 0.0, 3_000.0  # 7,500 steps are left, of a second each
        bar._bar.get_time = lambda: 3_000.0  # type: ignore[method-assign]
        task._progress.clear()
        task._progress.extend([ProgressSample(0.0, 0.0), ProgressSample(2_500.0, 2_500.0)])
        plain = Console(file=StringIO(), width=width, color_system=None)
        plain.print(bar._bar.get_renderable())
        (line,) = plain.file.getvalue().splitlines()  # type: ignore[attr-defined]
    finally:
        bar.on_train_end(run, SimpleNamespace())  # type: ignore[arg-type]
    name, bar_and_space = bar._name(), line.partition("2500/10000")[0]
    assert len(bar_and_space) - len(name) - 2 >= 10 and 0 < line.count("━") <= len(bar_and_space) / 4
    assert line.rstrip().endswith("2:05:00") and len(line) <= width
    assert "2500/10000" in line and ("loss 2.500" in line) == (width > 60)
    assert ("MaxVio" in line) == (width > 80)


def test_lines_of_validations_are_few_and_include_that_of_a_stopped_run() -> None:
    out = StringIO()
    bar = TrainingProgress(Console(file=out, width=120), "tiny")
    run = SimpleNamespace(
        global_step=0, max_steps=1000, sanity_checking=False, should_stop=False, callback_metrics={"val/loss": 1.0}
    )
    bar.on_train_start(run, SimpleNamespace())  # type: ignore[arg-type]
    for run.global_step in range(1, 801):
        run.should_stop = run.global_step == 800
        bar.on_validation_end(run, SimpleNamespace(validated_step=run.global_step))  # type: ignore[arg-type]
    bar.on_validation_end(run, SimpleNamespace(validated_step=799))  # type: ignore[arg-type] # abandoned
    lines = out.getvalue().splitlines()
    assert len(lines) < MAX_LINES and lines[-1] == "tiny  step 800/1000  validation: loss 1.000"
