"""A training step of a recipe, as ``moekit train`` takes it, against its dense twin's; and where its time goes."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from moekit.bench.measure import Settings
from moekit.bench.memory import Saved, saved_for_backward
from moekit.bench.stopwatch import OUTSIDE, Stopwatch
from moekit.bench.timing import Ratio, clock_for, ratio
from moekit.spec.recipe import Compare, Recipe
from moekit.training.folder import RunFolder
from moekit.training.logs import LoadHistory, RunLog
from moekit.training.module import LitMoE
from moekit.training.run import dense_recipe
from moekit.training.sampling import batch_at
from moekit.training.trainer import make_trainer, quiet, trainer_options

STEPS: Final = 5
"""Optimizer steps of a round: one that is not timed, then plain ones, and a last one that logs."""


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One model's training step.

    Attributes:
        name: ``mixture`` or ``dense``.
        ms: of a step that does not log, in the best round.
        ratio: to the dense model's; None where there is none.
        parts: milliseconds of each part of such a step, medians over all rounds.
        logging_ms: what logging adds to a step that logs.
        log_every: steps from one that logs to the next, in the recipe's own run.
        outside: share of a step that is neither model, objective nor optimizer, logging spread over the steps.
        seconds: of each counted round.
        saved: what one forward pass and loss keep for backward, where asked for, on a CPU.
        peak: bytes at most on the GPU in a round, where asked for and known.
    """

    name: str
    ms: float
    ratio: Ratio | None
    parts: Mapping[str, float]
    logging_ms: float
    log_every: int
    outside: float
    seconds: Sequence[float]
    saved: Saved | None = None
    peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """A recipe's step and its dense twin's.

    Attributes:
        title: the recipe.
        rows: the mixture, and the dense model where there is one.
    """

    title: str
    rows: Sequence[StepRow]


class Runner:
    """One model that is trained a few steps at a time, through Lightning, with the logs of a real run.

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
        parts = {part: statistics.median(step[part] for step in self.plain) for part in self.plain[0]}
        logging = statistics.median(step["logging"] for step in self.logged)
        whole = parts.pop("step") + logging / self.log_every
        outside = sum(parts[part] for part in OUTSIDE) + logging / self.log_every
        return StepRow(
            name=self.name,
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


def compare_steps(title: str, recipe: Recipe, settings: Settings) -> StepComparison:
    """Trains a recipe and its dense twin in turns, a few steps at a time.

    Args:
        title: how the recipe is called.
        recipe: with objective, optimizer and data.
        settings: how to measure.

    Raises:
        SpecError, DataError: the recipe cannot be trained.
    """
    twin = dense_recipe(replace(recipe, start=None, compare=recipe.compare or Compare()))
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        settings.tell("building and reading data")
        runners = [Runner("mixture", recipe, settings, Path(temporary) / "mixture")]
        if twin is not None:
            runners.append(Runner("dense", twin, settings, Path(temporary) / "dense"))
        for turn in range(settings.warmup + settings.rounds):
            for runner in runners if turn % 2 else runners[::-1]:
                counts = turn >= settings.warmup
                settings.tell(f"{f'round {turn + 1 - settings.warmup}' if counts else 'warm-up'}, {runner.name}")
                _with_peak(runner, settings, counts)
        base = runners[1] if twin is not None else None
        return StepComparison(title=title, rows=[runner.row(base, settings) for runner in runners])


def _with_peak(runner: Runner, settings: Settings, counts: bool) -> None:
    if settings.memory and settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        runner.round(counts=counts)
        runner.peak = int(torch.cuda.max_memory_allocated())
    else:
        runner.round(counts=counts)
