"""Another library's model, trained a few steps at a time in a plain loop, on a recipe's batches."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moekit.bench.measure import Settings
from moekit.bench.result import StepRow
from moekit.bench.timing import clock_for, ratio
from moekit.bench.trained import STEPS, Runner, medians
from moekit.contracts import Batch, Data
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe
from moekit.training.data import batch_at


@dataclass(frozen=True, kw_only=True)
class PeerModel:
    """Another library's model.

    Attributes:
        name: how it is called.
        model: what is trained.
        loss: the mean loss of a batch.
        note: what a reader must know to compare.
    """

    name: str
    model: nn.Module
    loss: Callable[[Batch], Tensor]
    note: str = ""


@dataclass(kw_only=True)
class LoopRunner:
    """Another library's model, trained on a recipe's batches in the plain loop that anyone would write.

    The optimizer is torch's AdamW, fused, with the options of the recipe's; gradients are clipped as the recipe says.

    Args:
        peer: the model.
        recipe: whose batches, seed, optimizer (AdamW) and clipping.
        data: of the recipe, already read.
        settings: how to measure.
    """

    peer: PeerModel
    recipe: Recipe
    data: Data
    settings: Settings
    rounds: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    peak: int | None = None

    def __post_init__(self) -> None:
        self.name, self.note = self.peer.name, self.peer.note
        self.model = self.peer.model.to(self.settings.device).train()
        self.clip = self.recipe.trainer.get("gradient_clip_val")
        options = {key: value for key, value in to_plain(self.recipe)["optimizer"].items() if key != "use"}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options, fused=True)
        self.clock = clock_for(self.settings.device)
        self.at = 0

    def trial(self) -> float:
        """Seconds of the second of two steps."""
        marks = [self._step() for _ in range(2)]
        self.clock.settle()
        return self._seconds(marks[-1])["step"]

    def round(self, *, counts: bool) -> None:
        """As many steps as a recipe's round, without one that logs; the first is never counted."""
        marks = [self._step() for _ in range(STEPS - 1)][1:]
        self.clock.settle()
        steps = [self._seconds(mark) for mark in marks]
        if counts:
            self.steps += steps
            self.rounds.append(statistics.median(step["step"] for step in steps))

    def row(self, base: Runner | None, settings: Settings) -> StepRow:
        """What the rounds came to."""
        parts = medians(self.steps)
        whole = parts.pop("step")
        return StepRow(
            name=self.name,
            parameters=sum(p.numel() for p in self.model.parameters()),
            ms=1e3 * min(self.rounds),
            ratio=None if base is None else ratio(self.rounds, base.rounds),
            parts={part: 1e3 * seconds for part, seconds in parts.items()},
            logging_ms=None,
            log_every=0,
            outside=parts["data"] / whole,
            seconds=self.rounds,
            peak=self.peak,
            note=self.note,
        )

    def _step(self) -> list[Any]:
        marks = [self.clock.mark()]
        batch = batch_at(self.data, seed=self.recipe.seed, step=self.at % STEPS)
        device = self.settings.device
        batch = batch._replace(inputs=batch.inputs.to(device), targets=batch.targets.to(device).contiguous())
        marks.append(self.clock.mark())
        self.optimizer.zero_grad()
        marks.append(self.clock.mark())
        with self._precision():
            loss = self.peer.loss(batch)
        marks.append(self.clock.mark())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(self.clock.mark())
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), float(self.clip))
        self.optimizer.step()
        marks.append(self.clock.mark())
        self.at += 1
        return marks

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.dtype == torch.bfloat16:
            return torch.autocast(self.settings.device, torch.bfloat16)
        return contextlib.nullcontext()

    def _seconds(self, marks: Sequence[Any]) -> dict[str, float]:
        lap = [self.clock.seconds(a, b) for a, b in itertools.pairwise(marks)]
        parts = {"data": lap[0], "forward": lap[2], "backward": lap[3], "optimizer": lap[1] + lap[4]}
        return {"step": self.clock.seconds(marks[0], marks[-1]), **parts}
