"""Which signals are taken while a run trains, and that they are given back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment
from test_lit_module import trainer

from moekit.training import LitMoE
from moekit.training.interrupt import StopOnInterrupt

pytestmark = pytest.mark.usefixtures("calm")
Make = Callable[..., dict[str, Any]]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Seen(L.Callback):
    """The handlers during the first micro-batch; and a signal sent in it, if any."""

    def __init__(self, send: signal.Signals | None = None) -> None:
        self.send = send
        self.handlers: dict[signal.Signals, Any] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if not self.handlers:
            self.handlers = {number: signal.getsignal(number) for number in SIGNALS}
            if self.send is not None:
                os.kill(os.getpid(), self.send)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_once_a_run_ends_with_its_step_and_gives_the_signals_back(recipe: Make, number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    said: list[str] = []
    stop = StopOnInterrupt(said.append)
    t = trainer(5, limit_val_batches=0, callbacks=[stop, Seen(number)], accumulate_grad_batches=2)
    t.fit(LitMoE(recipe()))
    assert (t.global_step, stop.asked, len(said)) == (1, number, 1)
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


def test_slurms_requeueing_is_left_to_lightning(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    seen, stop = Seen(), StopOnInterrupt(print)
    cluster = SLURMEnvironment(auto_requeue=True)
    trainer(1, limit_val_batches=0, callbacks=[stop, seen], plugins=[cluster]).fit(LitMoE(recipe()))
    (handler,) = seen.handlers[signal.SIGUSR1].signal_handlers
    assert handler.__name__ == "_slurm_sigusr_handler_fn"
    assert seen.handlers[signal.SIGTERM] == seen.handlers[signal.SIGINT] == stop._hear
