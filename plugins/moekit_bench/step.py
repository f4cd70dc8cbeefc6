"""A training step of a recipe, as ``moekit train`` runs it, against its dense baseline or another library's model."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from torch import nn

from moekit.contracts import Data
from moekit.spec import to_plain
from moekit.spec.recipe import Compare, Recipe
from moekit.training.build import RUN_SLOTS, check_trainable, dense_recipe
from moekit.training.data import batch_at
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import RunInfo, run_starting
from moekit.training.run.metrics_log import LogWrites, RunLog
from moekit.training.run.prepare import make_trainer, quiet, trainer_options
from moekit_bench import peers
from moekit_bench.measure import Clock, Settings, rotated
from moekit_bench.results import StepResult, StepRow, ratio
from moekit_bench.saved import Saved, saved_for_backward
from moekit_bench.stopwatch import OUTSIDE, Stopwatch

STEPS: Final = 5
"""Optimizer steps of a round: one that is not timed, then plain ones, and a last one that logs (if anything does)."""


class Runner(ABC):
    """A model that trains for a few steps in every round. ``note`` is what a reader must know to compare."""

    log_every = 0

    def __init__(self, name: str, model: nn.Module, settings: Settings, note: str = "") -> None:
        self.name, self.model, self.settings, self.note = name, model, settings, note
        self.rounds: list[float] = []
        self.steps: list[dict[str, float]] = []
        self.peak: int | None = None

    @abstractmethod
    def round(self, *, counts: bool) -> None:
        """Trains for a few optimizer steps; keeps their seconds if the round counts."""

    def row(self, base: Runner | None) -> StepRow:
        """The result of all rounds."""
        parts = {part: statistics.median(step[part] for step in self.steps) for part in self.steps[0]}
        logging = self.logging()
        per_step = 0.0 if logging is None else logging / self.log_every
        whole = parts.pop("step") + per_step
        outside = sum(parts.get(part, 0.0) for part in OUTSIDE) + per_step
        return StepRow(
            name=self.name,
            parameters=sum(p.numel() for p in self.model.parameters()),
            ms=1e3 * min(self.rounds),
            ratio=None if base is None else ratio(self.rounds, base.rounds),
            parts={part: 1e3 * seconds for part, seconds in parts.items()},
            logging_ms=None if logging is None else 1e3 * logging,
            log_every=self.log_every,
            outside=outside / whole,
            seconds=self.rounds,
            saved=self.saved() if self.settings.memory and self.settings.device == "cpu" else None,
            peak=self.peak,
            note=self.note,
        )

    def logging(self) -> float | None:
        """Seconds that logging adds to a step that logs; None where nothing logs."""
        return None

    @abstractmethod
    def saved(self) -> Saved:
        """What one batch's forward pass and loss save for backward, on the CPU."""

    def keep(self, steps: Sequence[dict[str, float]]) -> None:
        """Keeps the seconds of a round's steps."""
        self.steps += steps
        self.rounds.append(statistics.median(step["step"] for step in steps))


def compare_steps(title: str, recipe: Recipe, settings: Settings, *, against: Sequence[str] = ()) -> StepResult:
    """Trains a recipe and its dense baseline interleaved, a few steps at a time.

    With ``against``, names of other libraries, their models replace the dense baseline.

    Raises:
        SpecError, DataError: the recipe cannot be trained.
        MoekitError: a requested library cannot be used, or has no such model.
    """
    check_trainable(recipe, RUN_SLOTS)  # before building: the model may be too large for this machine
    libraries = [peers.load_models(name) for name in against]
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        settings.on_progress("building and reading data")
        mixture = RecipeRunner("mixture", recipe, settings, Path(temporary) / "mixture")
        runners: list[Runner] = [mixture, *_fastest_loops(libraries, mixture, recipe, settings)]
        dense = None if against else dense_recipe(replace(recipe, start=None, compare=recipe.compare or Compare()))
        if dense is not None:
            runners.append(RecipeRunner("dense", dense, settings, Path(temporary) / "dense"))
        for turn in range(settings.warmup + settings.rounds):
            for runner in rotated(runners, turn):
                counts = turn >= settings.warmup
                place = f"round {turn + 1 - settings.warmup}" if counts else "warm-up"
                settings.on_progress(f"{place}, {runner.name}")
                _run_round(runner, settings, counts)
        base = None if len(runners) == 1 else runners[0 if against else -1]
        rows = [runner.row(base) for runner in runners]
    return StepResult(title=title, baseline="" if base is None else base.name, rows=rows)


def _fastest_loops(
    libraries: Sequence[peers.ModelAdapter], mixture: RecipeRunner, recipe: Recipe, settings: Settings
) -> Iterator[LoopRunner]:
    """Of each library's implementations of its model, the fastest in a trial; its note names the others."""
    for library in libraries:
        seconds: dict[str, float] = {}
        loops: dict[str, LoopRunner] = {}
        for model in library(recipe, mixture.module.model):
            loop = LoopRunner(model, recipe, mixture.module.prepare(), settings)
            settings.on_progress(f"trial of {loop.name}")
            loops[loop.name], seconds[loop.name] = loop, loop.trial()
        first, *others = sorted(seconds, key=lambda name: seconds[name])
        for other in others:
            loops[first].note += f"; {other}: {seconds[other] / seconds[first]:.1f} times its time in a trial"
        yield loops[first]


def _run_round(runner: Runner, settings: Settings, counts: bool) -> None:
    on_gpu = settings.memory and settings.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    runner.round(counts=counts)
    if on_gpu:
        runner.peak = int(torch.cuda.max_memory_allocated())


class RecipeRunner(Runner):
    """A recipe's model, trained through Lightning, with the logs of a real run, in an empty folder.

    A ``dtype`` of bfloat16 in the settings means mixed precision.
    """

    def __init__(self, name: str, recipe: Recipe, settings: Settings, folder: Path) -> None:
        self.log_every = int(trainer_options(recipe)["log_every_n_steps"])
        trainer = replace(
            recipe.trainer,
            max_steps=STEPS,
            log_every_n_steps=STEPS + 1,  # Lightning logs the last step of a fit anyway
            val_check_interval=None,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="gpu" if settings.device == "cuda" else "cpu",
            precision="bf16-mixed" if settings.dtype == torch.bfloat16 else "32-true",
        )
        self.recipe = replace(recipe, trainer=trainer, stop=None, start=None, compare=None)
        self.folder = RunFolder(folder)
        self.folder.create()
        self.module = LitMoE(self.recipe)
        self.module.prepare()
        self.watch = Stopwatch(self.module, Clock(settings.device))
        self.logged: list[dict[str, float]] = []
        super().__init__(name, self.module, settings)

    def round(self, *, counts: bool) -> None:
        """Trains for ``STEPS`` optimizer steps, the first of which is never counted."""
        writes = LogWrites()
        log = RunLog(self.folder.metrics, writes=writes)
        trainer = make_trainer(self.recipe, self.folder, loggers=[log])
        run = RunInfo(folder=self.folder.path, name=self.name, label=self.name)
        run_starting(trainer, run, self.module, {}, Console(quiet=True), writes)
        for logger in trainer.loggers:
            logger.log_metrics({}, 0)  # an event file is begun, which happens once in a run
        trainer.callbacks.append(self.watch)  # type: ignore[attr-defined] # after those that log
        trainer.fit(self.module)
        *plain, last = self.watch.steps
        if counts:
            self.keep(plain)
            self.logged.append(last)

    def logging(self) -> float:
        """The median over the rounds' last steps."""
        return statistics.median(step["logging"] for step in self.logged)

    def saved(self) -> Saved:
        """In training's precision."""
        module, batch = self.module, batch_at(self.module.prepare(), seed=self.recipe.seed, step=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.dtype == torch.bfloat16):
            return saved_for_backward(
                lambda: module.objective(module.model.on(batch), batch).total, list(module.model.parameters())
            )


class LoopRunner(Runner):
    """Another library's model, trained on a recipe's batches in a plain training loop.

    The optimizer is torch's AdamW, fused, with the options of the recipe's; gradients are clipped as the recipe says.
    The data must be prepared.
    """

    def __init__(self, peer: peers.PeerModel, recipe: Recipe, data: Data, settings: Settings) -> None:
        super().__init__(peer.name, peer.model.to(settings.device).train(), settings, peer.note)
        self.loss, self.recipe, self.data = peer.loss, recipe, data
        self.clip = recipe.trainer.gradient_clip_val
        options = {key: value for key, value in to_plain(recipe)["optimizer"].items() if key != "use"}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options, fused=True)
        self.clock = Clock(settings.device)
        self.step = 0

    def trial(self) -> float:
        """Seconds of the second of two steps."""
        return self._steps(2)[-1]["step"]

    def saved(self) -> Saved:
        """In the same precision as the steps."""
        batch = batch_at(self.data, seed=self.recipe.seed, step=0)
        batch = batch._replace(targets=batch.targets.contiguous())
        with self._precision():
            return saved_for_backward(lambda: self.loss(batch), list(self.model.parameters()))

    def round(self, *, counts: bool) -> None:
        """As many steps as a recipe's round, without one that logs; the first is never counted."""
        steps = self._steps(STEPS - 1)[1:]
        if counts:
            self.keep(steps)

    def _steps(self, count: int) -> list[dict[str, float]]:
        marks = [self._marked_step() for _ in range(count)]
        self.clock.settle()
        return [self._seconds(each) for each in marks]

    def _marked_step(self) -> list[Any]:
        marks = [self.clock.mark()]
        batch = batch_at(self.data, seed=self.recipe.seed, step=self.step % STEPS)
        device = self.settings.device
        batch = batch._replace(inputs=batch.inputs.to(device), targets=batch.targets.to(device).contiguous())
        marks.append(self.clock.mark())
        self.optimizer.zero_grad()
        marks.append(self.clock.mark())
        with self._precision():
            loss = self.loss(batch)
        marks.append(self.clock.mark())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(self.clock.mark())
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), float(self.clip))
        self.optimizer.step()
        marks.append(self.clock.mark())
        self.step += 1
        return marks

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.dtype == torch.bfloat16:
            return torch.autocast(self.settings.device, torch.bfloat16)
        return contextlib.nullcontext()

    def _seconds(self, marks: Sequence[Any]) -> dict[str, float]:
        lap = [self.clock.seconds(a, b) for a, b in itertools.pairwise(marks)]
        parts = {"data": lap[0], "forward": lap[2], "backward": lap[3], "optimizer": lap[1] + lap[4]}
        return {"step": self.clock.seconds(marks[0], marks[-1]), **parts}
