"""Stopping a run by signal: SIGINT (Ctrl-C), or SIGTERM (sent by clusters, ``docker stop`` and ``kill``).

The first signal ends training after the current optimizer step, with a checkpoint; the second ends it at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopOnInterrupt(Callback):
    """After the first Ctrl-C or SIGTERM, completes the optimizer step, validates, saves, and stops.

    A checkpoint within an optimizer step would lose its gradients. So the callback sets ``trainer.should_stop`` just
    before a step is taken, and Lightning then validates and saves after it. All ranks stop at the same step, whichever
    rank gets the signal.

    SIGUSR1, with which Lightning saves and requeues under SLURM, keeps its handler.

    Attributes:
        report: prints a line.
        signal: the signal that stops this run, on whichever rank it arrived; None before.
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self.report = report
        self.signal: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces Lightning's handler of SIGTERM, which would stop within a step.

        Lightning restores all handlers when training ends. Python allows handlers only in the main thread; in another
        thread nothing changes.
        """
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.report(f"\nstopping after this step ({NAMES[self.signal]} again: at once)")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Makes this step the last if any rank got a signal."""
        if self.agree(trainer):
            trainer.should_stop = True

    def agree(self, trainer: L.Trainer) -> signal.Signals | None:
        """The signal that stops the run, the same on every rank. A collective.

        Call it again after training: a signal may arrive while the last step is validated and saved.
        """
        if trainer.world_size > 1:
            number = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
            number = trainer.strategy.reduce(number, reduce_op="max")
            if not number:
                return None  # a signal that arrived meanwhile counts the next time: other ranks do not know it yet
            self.signal = signal.Signals(int(number))
        return self.signal
