"""Being told to stop, twice: the first ends training after the optimizer step at hand, with a checkpoint; the second
at once. Ctrl-C (SIGINT) is a person's, SIGTERM that of a cluster, ``docker stop`` or ``kill``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopOnInterrupt(Callback):
    """Turns the first Ctrl-C or SIGTERM into a whole last step: validated, saved, and to go on from.

    A checkpoint within an optimizer step would lose its gradients, so the trainer is asked to stop just before the
    step is taken, which also has it validate and save. Several ranks agree on the step, whichever of them was told.

    SIGUSR1, by which Lightning saves and requeues under SLURM, is left as it is.

    Args:
        tell: says a line to the user.

    Attributes:
        asked: the signal that this run was told to stop by, on whichever rank; None when it was not.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell = tell
        self.asked: signal.Signals | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens, in place of Lightning, which takes SIGTERM before, and would stop within a step.

        Lightning also gives all signals back, however training ends. Python takes signals in the main thread alone;
        elsewhere they stay as they are.
        """
        if threading.current_thread() is threading.main_thread():
            for number in WORDS:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.asked = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.tell(f"\nstopping after this step ({WORDS[self.asked]} again: at once)")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Makes this step the last, when any rank is asked to."""
        if self.agree(trainer):
            trainer.should_stop = True

    def agree(self, trainer: L.Trainer) -> signal.Signals | None:
        """What the run was told to stop by, the same on every rank from then on; a collective.

        To be asked once more when training has ended: a rank may be told while it validates and saves the last step.
        """
        if trainer.world_size > 1:
            told = torch.tensor(self.asked or 0, device=trainer.strategy.root_device)
            told = trainer.strategy.reduce(told, reduce_op="max")
            self.asked = signal.Signals(int(told)) if told else None
        return self.asked
