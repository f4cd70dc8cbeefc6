"""Callbacks, loggers, strategies and schedules, each with one fault that a check must catch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from healthy import (
    Alone,
    Count,
    CountCallback,
    Level,
    Lines,
    LinesLogger,
    Split,
    alone,
    components,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy

from moekit import Component
from moekit.spec.recipe import Recipe
from moekit.training.run.hooks import RunInfo


def not_a_callback(spec: Count) -> object:
    return object()


def saves(spec: Count) -> ModelCheckpoint:
    return ModelCheckpoint()


class Raises(CountCallback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        raise ZeroDivisionError("no steps")


class StopsEarly(CountCallback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = True


class PublishesNaN(CountCallback):
    def published(self) -> float:
        return float("nan")


class KeepsAnObject(CountCallback):
    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "model": object()}


class Forgets(CountCallback):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        return None


def not_a_logger(spec: Lines, run: RunInfo) -> object:
    return object()


class TakesNoMetrics(LinesLogger):
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        raise NotImplementedError


class WritesHere(LinesLogger):
    def file(self) -> Path:
        return Path("lines.txt")


class Deletes(LinesLogger):
    def __init__(self, spec: Lines, run: RunInfo) -> None:
        for path in run.folder.glob("*.txt"):
            path.unlink()
        super().__init__(spec, run)

    def file(self) -> Path:
        return self.run.folder / f"lines-{self.run.upto}.txt"


def not_a_strategy(spec: Alone, recipe: Recipe) -> object:
    return object()


class SaysYes(Alone):
    def check_precision(self, precision: str | None) -> Iterable[str]:
        return [""] if precision == "bf16-mixed" else []


class Scales(SingleDeviceStrategy):
    """Multiplies gradients by 2, as one does that sums what it should average."""

    def backward(self, closure_loss: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().backward(2 * closure_loss, *args, **kwargs)


def scales(spec: Alone, recipe: Recipe) -> Strategy:
    return Scales(torch.device("cpu"))


def counts_its_calls(spec: Level, total_steps: int) -> Callable[[int], float]:
    calls = iter(range(1000))
    return lambda step: 1 / (1 + next(calls))


BROKEN: dict[str, list[Component]] = {
    "check_callback_class": components(Count, not_a_callback, saves),
    "check_callback_trains": components(Count, Raises, StopsEarly, PublishesNaN),
    "check_callback_state": components(Count, KeepsAnObject, Forgets),
    "check_callback_resumes": components(Count, Forgets),
    "check_logger_class": components(Lines, not_a_logger),
    "check_logger_trains": components(Lines, TakesNoMetrics),
    "check_logger_files": components(Lines, WritesHere),
    "check_logger_resumes": components(Lines, Deletes),
    "check_strategy_class": components(Alone, not_a_strategy),
    "check_strategy_shards": components(Split, alone),
    "check_strategy_precision": components(SaysYes, alone),
    "check_strategy_trains": components(Alone, scales),
    "check_schedule_repeats": components(Level, counts_its_calls),
}
