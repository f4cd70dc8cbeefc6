"""A recipe's model, trained a few steps at a time as ``moekit train`` does it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import torch

from moekit.bench.measure import Settings
from moekit.bench.memory import Saved, saved_for_backward
from moekit.bench.result import StepRow
from moekit.bench.stopwatch import OUTSIDE, Stopwatch
from moekit.bench.timing import clock_for, ratio
from moekit.spec.recipe import Recipe
from moekit.training.callbacks.load_history import LoadHistory
from moekit.training.data import batch_at
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import RunLog
from moekit.training.run.prepare import make_trainer, trainer_options

STEPS: Final = 5
"""Optimizer steps of a round: one that is not timed, then plain ones, and a last one that logs (if anything does)."""


class Runner(Protocol):
    """What takes its turn in every round."""

    name: str
    rounds: list[float]
    peak: int | None

    def round(self, *, counts: bool) -> None:
        """Trains for a few optimizer steps."""

    def row(self, base: Runner | None, settings: Settings) -> StepRow:
        """What the rounds came to."""


class RecipeRunner:
    """A recipe's model, trained through Lightning, with the logs of a real run.

    Args:
        name: how it is called.
        recipe: what is trained.
        settings: how to measure; ``dtype`` bfloat16 means mixed precision.
        folder: an empty folder.
    """

    def __init__(self, name: str, recipe: Recipe, settings: Settings, folder: Path) -> None:
        self.name = name
        self.log_every = int(trainer_options(recipe)["log_every_n_steps"])
        options = {
            **recipe.trainer,
            "max_steps": STEPS,
            "log_every_n_steps": STEPS + 1,  # the last step of a fit is logged all the same
            "limit_val_batches": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "accelerator": "gpu" if settings.device == "cuda" else "cpu",
            "precision": "bf16-mixed" if settings.dtype == torch.bfloat16 else "32-true",
        }
        self.recipe = replace(recipe, trainer=options, stop=None, start=None, compare=None)
        self.folder = RunFolder(folder)
        self.folder.create()
        self.module = LitMoE(self.recipe)
        self.module.prepare()
        self.watch = Stopwatch(self.module, clock_for(settings.device))
        self.plain: list[dict[str, float]] = []
        self.logged: list[dict[str, float]] = []
        self.rounds: list[float] = []
        self.peak: int | None = None

    def round(self, *, counts: bool) -> None:
        """Trains for ``STEPS`` optimizer steps, the first of which is never counted."""
        log, loads = RunLog(self.folder.metrics, self.folder.tensorboard), LoadHistory(self.folder.loads)
        log.log_metrics({}, 0)  # opens the event file, which happens once in a run
        trainer = make_trainer(self.recipe, self.folder, loggers=[log], callbacks=[loads, self.watch])
        trainer.fit(self.module)
        *plain, last = self.watch.steps
        if counts:
            self.plain += plain
            self.logged.append(last)
            self.rounds.append(statistics.median(step["step"] for step in plain))

    def row(self, base: Runner | None, settings: Settings) -> StepRow:
        """What the rounds came to."""
        parts = medians(self.plain)
        logging = statistics.median(step["logging"] for step in self.logged)
        whole = parts.pop("step") + logging / self.log_every
        outside = sum(parts[part] for part in OUTSIDE) + logging / self.log_every
        return StepRow(
            name=self.name,
            parameters=sum(p.numel() for p in self.module.parameters()),
            ms=1e3 * min(self.rounds),
            ratio=None if base is None else ratio(self.rounds, base.rounds),
            parts={part: 1e3 * seconds for part, seconds in parts.items()},
            logging_ms=1e3 * logging,
            log_every=self.log_every,
            outside=outside / whole,
            seconds=self.rounds,
            saved=self.saved(settings.dtype) if settings.memory and settings.device == "cpu" else None,
            peak=self.peak,
        )

    def saved(self, dtype: torch.dtype) -> Saved:
        """What one batch's forward pass and loss keep for backward, on the CPU, in training's precision."""
        module, batch = self.module, batch_at(self.module.prepare(), seed=self.recipe.seed, step=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return saved_for_backward(
                lambda: module.objective(module.model.on(batch), batch).total, list(module.model.parameters())
            )


def medians(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each part over steps."""
    return {part: statistics.median(step[part] for step in steps) for part in steps[0]}
