"""A callback that times the parts of a training step: model, objective, backward, optimizer, balance, logging, rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from moekit.training.data import StepLoader
from moekit.training.module import LitMoE
from moekit_bench.measure import Clock

TIMED: Final = ("data", "forward", "objective", "backward", "optimizer", "balance", "bookkeeping", "logging")
"""Timed parts of a step, each without the parts nested in it; the rest of the step is ``lightning``: its loop.

``data`` is what training waits for a batch; nothing, where a thread has it ready.
"""

OUTSIDE: Final = ("data", "balance", "bookkeeping", "logging", "lightning")
"""Parts that are neither the model's, the objective's nor the optimizer's."""


class Span(NamedTuple):
    """The time from one mark to another, spent in a part, which may be nested in another part."""

    part: str
    begin: Any
    end: Any
    inside: str | None = None


class Stopwatch(Callback):
    """Times the parts of each optimizer step; a step lasts from the end of the one before to its own end.

    Args:
        module: the module to train, prepared; its methods are wrapped once, here.
        clock: of the device.

    Attributes:
        steps: for each step of a fit but the first, seconds by part; filled at the end of the fit.
    """

    def __init__(self, module: LitMoE, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[dict[str, float]] = []
        self._spans: list[Span] = []
        self._marks: list[tuple[Any, list[Span]]] = []
        self._inside: list[str] = []
        self._mark: Any = None
        self._step = 0
        for owner, name, part in (
            (module.model, "on", "forward"),
            (module.objective, "forward", "objective"),
            (module.balance, "observe", "balance"),
            (module.balance, "step", "balance"),
            (module, "_log", "logging"),
            (module, "optimizer_zero_grad", "optimizer"),
            (module, "training_step", "bookkeeping"),
            (module, "on_before_optimizer_step", "optimizer"),
        ):
            setattr(owner, name, self._timed(part, getattr(owner, name)))
        setattr(module, "train_dataloader", self._timing_waits(module.train_dataloader))  # noqa: B010
        setattr(module, "on_before_optimizer_step", self._marking_end(module.on_before_optimizer_step))  # noqa: B010

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clears the results of the previous fit, and marks the end of each optimizer step by a hook."""
        self.steps, self._marks, self._spans, self._step = [], [], [], 0
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._end_optimizer)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        """Marks the start of backward."""
        self._mark = self.clock.mark()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks the end of backward."""
        self._spans.append(Span("backward", self._mark, self.clock.mark()))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Marks the end of an optimizer step, unless more micro-batches follow in it."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._marks.append((self.clock.mark(), self._spans))
            self._spans = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Converts marks to seconds."""
        self.clock.settle()
        for (start, _), (end, spans) in zip(self._marks, self._marks[1:], strict=False):
            parts = dict.fromkeys(TIMED, 0.0)
            for span in spans:
                seconds = self.clock.seconds(span.begin, span.end)
                parts[span.part] += seconds
                if span.inside is not None:
                    parts[span.inside] -= seconds
            whole = self.clock.seconds(start, end)
            self.steps.append({"step": whole, **parts, "lightning": whole - sum(parts.values())})

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def _call(*args: Any, **kwargs: Any) -> Any:
            inside = self._inside[-1] if self._inside else None
            self._inside.append(part)
            start = self.clock.mark()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside.pop()
                self._spans.append(Span(part, start, self.clock.mark(), inside))

        return _call

    def _timing_waits(self, loader: Callable[[], StepLoader]) -> Callable[[], StepLoader]:
        """A thread may sample batches during a step: only what training waits for is a part of the step."""

        def _call() -> StepLoader:
            made = loader()
            setattr(made, "wait", self._timed("data", made.wait))  # noqa: B010
            return made

        return _call

    def _marking_end(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def _call(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            self._mark = self.clock.mark()  # clipping and the update follow

        return _call

    def _end_optimizer(self, *args: Any) -> None:
        self._spans.append(Span("optimizer", self._mark, self.clock.mark()))
