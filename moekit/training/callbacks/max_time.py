"""Ending a run when ``trainer.max_time`` is over, with a whole optimizer step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Timer


class StopAfterTime(Callback):
    """Makes the optimizer step in which the time is over the last. Only this process's training counts.

    Lightning's own ``Timer`` ends a run within a step, whose gradients so far are lost. It also counts the time before
    a run was resumed, which would then end at once.

    Args:
        duration: what Lightning's ``Timer`` takes.

    Attributes:
        is_over: whether it ended the run.
    """

    def __init__(self, duration: Any) -> None:
        self._timer = Timer(duration)
        self.is_over = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the time."""
        self._timer.on_train_start(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Makes this step the last if the time is over on rank 0, unless it is the last anyway."""
        step = trainer.global_step + 1
        if (trainer.min_steps or 0) <= step < trainer.max_steps:
            self.is_over = trainer.strategy.broadcast((self._timer.time_remaining() or 0) <= 0)
            trainer.should_stop = trainer.should_stop or self.is_over
