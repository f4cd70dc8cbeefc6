"""Stopping a run by signal: SIGINT (Ctrl-C), SIGTERM (sent by clusters, ``docker stop`` and ``kill``), or SIGHUP (sent
when a terminal closes, as when ``ssh`` is cut).

The first signal ends training after the current optimizer step, with a checkpoint; the second ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from moekit.compat import set_sigterm_handler
from moekit.distributed import host_group, is_distributed
from moekit.training.module import LitMoE

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    NAMES[signal.SIGHUP] = "SIGHUP"


class StopOnInterrupt(Callback):
    """After the first signal, completes the optimizer step, saves, and stops. It validates nothing.

    A checkpoint within an optimizer step would lose its gradients. So the callback sets ``trainer.should_stop`` just
    before a step is taken. A validation that has begun is abandoned: the sender of the signal may not wait for its end.
    A resumed run makes up for it, or for one that was not begun. All ranks stop at the same step, whichever rank gets
    the signal.

    SIGUSR1, with which Lightning saves and requeues under SLURM, keeps its handler.

    Attributes:
        report: prints a line.
        signal: the signal that stops this run, on whichever rank it arrived; None before.
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self.report = report
        self.signal: signal.Signals | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Has Lightning set this handler of SIGTERM in place of its own, before it sets up the data.

        Its own would broadcast to ranks that expect something else, which hangs, and end training within a step.
        """
        if stage == "fit":
            set_sigterm_handler(trainer, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leaves what the trainer does next, such as ``validate``, to Lightning's handler."""
        set_sigterm_handler(trainer, None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the handlers of all signals, if none has arrived.

        Lightning restores all handlers when training ends. Python allows handlers only in the main thread; in another
        thread nothing changes.
        """
        if self.signal is None and threading.current_thread() is threading.main_thread():
            for number in NAMES:
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = signal.Signals(number)
        for each in NAMES:
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        if NAMES[self.signal] == "SIGHUP":
            leave_terminal()
        self.report(f"\nstopping after this step ({NAMES[self.signal]} again: at once)")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Makes this step the last if any rank got a signal."""
        if self.agree():
            end(trainer)
            trainer.limit_val_batches = 0  # else Lightning validates the last step

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Abandons the validation if any rank got a signal.

        Raises:
            StopIteration: it is abandoned; Lightning's loop ends as if this were the end of the data.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.agree():
            end(trainer)
            if isinstance(pl_module, LitMoE):
                pl_module.discard_validation()
            for each in trainer.early_stopping_callbacks:  # it would count the validation before a second time
                vars(each)["on_validation_end"] = lambda *_: None
            raise StopIteration

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the step that was validated the last if any rank got a signal in its last batch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.agree():
            end(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets callbacks see validations again, for another run in this process."""
        for each in trainer.early_stopping_callbacks:
            vars(each).pop("on_validation_end", None)

    def agree(self) -> signal.Signals | None:
        """The signal that stops the run, the same on every rank. A collective of the hosts: no device is waited for.

        Call it again after training: a signal may arrive while the last step is saved.
        """
        if is_distributed():
            number = torch.tensor(self.signal or 0)
            dist.all_reduce(number, dist.ReduceOp.MAX, group=host_group())
            if not number:
                return None  # a signal that arrived meanwhile counts the next time: other ranks do not know it yet
            self.signal = signal.Signals(int(number))
        return self.signal


def end(trainer: L.Trainer) -> None:
    """Has Lightning end training after the current step, also before ``trainer.min_steps``."""
    trainer.should_stop = True
    trainer.fit_loop.epoch_loop.min_steps = None


def leave_terminal() -> None:
    """Sends output that would go to a terminal, which is closed, to the null device: each line would be an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if os.isatty(stream.fileno()):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
        except (OSError, ValueError):  # a stream without a descriptor, as in a test
            pass
