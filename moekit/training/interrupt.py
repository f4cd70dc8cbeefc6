"""Ctrl-C, twice: the first ends training after the optimizer step at hand, with a checkpoint; the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class StopOnInterrupt(Callback):
    """Turns the first Ctrl-C into a whole last step: validated, saved, and to go on from.

    A checkpoint within an optimizer step would lose its gradients, so the trainer is asked to stop just before the
    step is taken, which also has it validate and save.

    Args:
        tell: says a line to the user.

    Attributes:
        asked: whether there was a Ctrl-C.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.asked = False
        self._before: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens. Python takes signals in the main thread alone; elsewhere Ctrl-C stays as it is."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.tell("\nstopping after this step (Ctrl-C again: at once)")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Makes this step the last, when asked to."""
        if self.asked:
            trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the signal back, however training ended."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
