"""The display of a running training: a progress bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moekit.spec.fields import MetricInfo, metrics_of
from moekit.training.run.console import counted_unit
from moekit.training.run.hooks import StartingRun

MAX_LINES = 20  # without a terminal
LABEL, BAR, LEFT = 16, 18, 8  # columns at most: of the name, the bar, and the remaining time


class TrainingProgress(ProgressBar):
    """Shows step, loss, speed (in ``unit``: tokens or cases), learning rate, MaxVio, time left, and validations.

    ``metrics`` are those that the recipe's parts declare; of these, the live ones and the headline are shown.
    """

    def __init__(
        self,
        console: Console,
        label: str,
        unit: str = "tokens",
        metrics: Mapping[str, MetricInfo] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.console = console
        self.label = label
        self.unit = unit
        self.metrics = metrics
        self._enabled = True
        self._bar: Progress | None = None
        self._task: Any = None
        self._next_line = self._next_validation = 0
        self._updated = 0.0

    def enable(self) -> None:
        """Shows the display; Lightning calls it on rank 0."""
        self._enabled = True

    def disable(self) -> None:
        """Hides the display; Lightning calls it on other ranks."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the bar."""
        self._next_line, self._next_validation = trainer.global_step + 1, trainer.global_step
        if self._enabled and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=BAR),
                TextColumn("{task.fields[text]}", markup=False), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            name, done = escape(self._name()), trainer.global_step
            self._task = self._bar.add_task(name, total=trainer.max_steps, completed=done, text="")
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Updates the bar, or prints one of a few lines."""
        step = trainer.global_step
        if not self._enabled:
            return
        if self._bar is not None:
            now = time.monotonic()
            if now - self._updated > 0.1 or step >= trainer.max_steps:
                self._updated = now
                room = self.console.width - len(self._name()) - BAR - LEFT - 3
                parts = [f"{step}/{trainer.max_steps}", *metrics_parts(pl_module.logged, self.metrics, self.unit)]
                text = "  ".join(fitting(parts, room))
                self._bar.update(self._task, completed=step, text=text)
        elif pl_module.logged_step == step and step >= self._next_line:
            line = f"step {step}/{trainer.max_steps}  {metrics_line(pl_module.logged, self.metrics, self.unit)}"
            self.console.print(line, highlight=False)
            self._next_line = step + max(1, 2 * trainer.max_steps // MAX_LINES)

    def _name(self) -> str:
        return self.label if len(self.label) <= LABEL else f"{self.label[: LABEL - 1]}…"

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Prints the validation's line, unless validations are too frequent, or this one was abandoned."""
        step = trainer.global_step
        if pl_module.validated_step != step or (step < self._next_validation and not trainer.should_stop):
            return
        self._next_validation = step + 2 * trainer.max_steps // (MAX_LINES + 1)
        values = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith("val/")}
        if self._enabled and values:
            line = f"{self.label}  step {step}/{trainer.max_steps}  validation: {validation_line(values, self.metrics)}"
            console = self._bar.console if self._bar is not None else self.console
            console.print(line, highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the bar."""
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Removes the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_of(run: StartingRun) -> TrainingProgress:
    """The display of a run."""
    return TrainingProgress(run.console, run.label, counted_unit(run.recipe), metrics_of(run.recipe))


def metrics_line(values: Mapping[str, float], metrics: Mapping[str, MetricInfo], unit: str = "tokens") -> str:
    """The training metrics that exist, in one line."""
    return "  ".join(metrics_parts(values, metrics, unit))


def fitting(parts: Sequence[str], room: int) -> list[str]:
    """The first parts that fit into so many columns, two spaces between them: the first one always."""
    count = len(parts)
    while count > 1 and len("  ".join(parts[:count])) > room:
        count -= 1
    return list(parts[:count])


def metrics_parts(values: Mapping[str, float], metrics: Mapping[str, MetricInfo], unit: str = "tokens") -> list[str]:
    """The training metrics that exist, those that matter most first."""
    parts = []
    if "train/loss" in values:
        parts.append(f"loss {values['train/loss']:.3f}")
    parts += _shown(values, "train/", {name: info for name, info in metrics.items() if info.live})
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} {unit}/s")
    if "lr" in values:
        parts.append(f"lr {values['lr']:.2g}")
    if "train/max_violation" in values:
        parts.append(f"MaxVio {values['train/max_violation']:.2f}")
        parts.append(f"dropped {values['train/dropped']:.1%}")
    return parts


def validation_line(values: Mapping[str, float], metrics: Mapping[str, MetricInfo]) -> str:
    """The validation metrics that exist, in one line; the loss comes last."""
    shown = {name: info for name, info in metrics.items() if (info.live or info.headline) and name != "loss"}
    return ", ".join(_shown(values, "val/", {**shown, "loss": MetricInfo("loss")}))


def _shown(values: Mapping[str, float], part: str, metrics: Mapping[str, MetricInfo]) -> list[str]:
    return [
        f"{info.label} {info.format(values[part + name])}" for name, info in metrics.items() if part + name in values
    ]
