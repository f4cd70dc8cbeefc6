"""Signals during a run: the first stops it after its step, on all ranks; handlers are restored."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch.distributed as dist
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor
from training_helpers import trainer

from moekit.training import LitMoE
from moekit.training.callbacks import interrupt
from moekit.training.callbacks.interrupt import StopOnInterrupt

pytestmark = pytest.mark.usefixtures("quiet_lightning")
Make = Callable[..., dict[str, Any]]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*STOPPING, signal.SIGUSR1)


class Seen(L.Callback):
    """Records the handlers during the first micro-batch, and may send a signal."""

    def __init__(self, send: signal.Signals | None = None) -> None:
        self.send = send
        self.handlers: dict[signal.Signals, Any] = {}

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if not self.handlers:
            self.handlers = {number: signal.getsignal(number) for number in SIGNALS}
            if self.send is not None:
                os.kill(os.getpid(), self.send)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_ends_the_run_after_its_step_and_handlers_are_restored(
    recipe: Make, number: signal.Signals
) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    said: list[str] = []
    stop = StopOnInterrupt(said.append)
    t = trainer(5, limit_val_batches=0, callbacks=[stop, Seen(number)], accumulate_grad_batches=2)
    t.fit(LitMoE(recipe()))
    assert (t.global_step, stop.signal, len(said)) == (1, number, 1)
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


class BeforeTraining(L.Callback):
    """Sends SIGTERM once Lightning has set its handler, and before training starts."""

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_before_the_first_step_ends_the_run_after_it(recipe: Make) -> None:
    """Lightning's own handler would end it in the first micro-batch, with nothing saved."""
    before, seen = {each: signal.getsignal(each) for each in SIGNALS}, Seen()
    said: list[str] = []
    stop = StopOnInterrupt(said.append)
    t = trainer(5, num_sanity_val_steps=1, callbacks=[stop, BeforeTraining(), seen], accumulate_grad_batches=2)
    t.fit(LitMoE(recipe()))
    assert (t.global_step, stop.signal, len(said)) == (1, signal.SIGTERM, 1)
    assert seen.handlers[signal.SIGTERM] == signal.SIG_DFL  # a second one ends the process
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


class InValidation(L.Callback):
    """Sends a signal in a batch of the second validation, and records what is validated and saved."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.ran: list[tuple[int, int]] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ran.append((trainer.global_step, batch_idx))
        if trainer.global_step == 2 and batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("batch", "validated"), [(0, 1), (2, 2)])
def test_a_signal_in_a_validation_abandons_it(recipe: Make, batch: int, validated: int) -> None:
    """In its last batch there is nothing left to abandon. Either way, the step that was validated is the last."""
    seen, module = InValidation(batch), LitMoE(recipe())
    t = trainer(5, val_check_interval=1, callbacks=[StopOnInterrupt(lambda line: None), seen])
    t.fit(module)
    assert (t.global_step, module.validated_step) == (2, validated)
    assert seen.ran == [*((1, i) for i in range(3)), *((2, i) for i in range(batch + 1))]


def test_a_signal_in_training_validates_nothing(recipe: Make) -> None:
    seen = InValidation(9)
    trainer(5, val_check_interval=1, callbacks=[StopOnInterrupt(lambda line: None), Seen(signal.SIGTERM), seen]).fit(
        LitMoE(recipe())
    )
    assert seen.ran == []


def test_an_ignored_hangup_stays_ignored(recipe: Make) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopOnInterrupt(lambda line: None)
        t = trainer(2, limit_val_batches=0, callbacks=[stop, Seen(signal.SIGHUP)])
        t.fit(LitMoE(recipe()))
        assert (t.global_step, stop.signal) == (2, None)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    """Whichever came first, both have their usual effect again."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    stop = StopOnInterrupt(lambda line: None)
    try:
        stop.on_train_start(cast(Any, None), cast(Any, None))
        signal.raise_signal(number)
        after = [signal.getsignal(each) for each in STOPPING]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stop.signal == number and after == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]


def test_lightning_keeps_its_handler_for_slurms_requeueing(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NTASKS": "1", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    seen, stop = Seen(), StopOnInterrupt(print)
    cluster = SLURMEnvironment(auto_requeue=True)
    trainer(1, limit_val_batches=0, callbacks=[stop, seen], plugins=[cluster]).fit(LitMoE(recipe()))
    (handler,) = seen.handlers[signal.SIGUSR1].signal_handlers
    assert handler.__name__ == "_slurm_sigusr_handler_fn"
    assert {seen.handlers[each] for each in STOPPING} == {stop._on_signal}


class Ranks:
    """Two ranks: this one, and another that got the signal ``other``. Their hosts agree: no device is there.

    ``meanwhile`` is called once both have sent theirs.
    """

    should_stop = False
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())

    def __init__(self, patch: pytest.MonkeyPatch, other: int, meanwhile: Callable[[], object] = bool) -> None:
        self.other, self.meanwhile = other, meanwhile
        patch.setattr(interrupt, "is_distributed", lambda: True)
        patch.setattr(interrupt, "host_group", lambda: "hosts")
        patch.setattr(dist, "all_reduce", self.all_reduce)

    def all_reduce(self, tensor: Tensor, op: Any, group: str) -> None:
        assert (op, group, tensor.device.type) == (dist.ReduceOp.MAX, "hosts", "cpu")
        tensor.clamp_(min=self.other)
        self.meanwhile()


@pytest.mark.parametrize(
    ("here", "there", "agreed"),
    [
        (None, 0, None),
        (signal.SIGTERM, 0, signal.SIGTERM),
        (None, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM, signal.SIGTERM),
    ],
)
def test_ranks_stop_together_whichever_got_the_signal(
    here: signal.Signals | None, there: int, agreed: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, both = StopOnInterrupt(print), Ranks(monkeypatch, int(there))
    stop.signal = here
    stop.on_before_optimizer_step(cast(Any, both), cast(Any, None), cast(Any, None))
    assert stop.signal == agreed and both.should_stop == (agreed is not None)
    after = StopOnInterrupt(print)
    after.signal = here
    assert after.agree() == after.signal == agreed  # arrived after the last step


def test_a_signal_during_the_agreement_stops_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs a handler between two lines, so also after the reduction and before its result is read."""
    stop = StopOnInterrupt(lambda line: None)
    Ranks(monkeypatch, 0, lambda: setattr(stop, "signal", signal.SIGTERM))  # what the handler does
    assert stop.agree() is None  # the other rank cannot know yet
    assert stop.agree() == signal.SIGTERM


def test_handlers_do_not_change_in_another_thread() -> None:
    """Python allows handlers only in the main thread; a run in another thread, as in a notebook, must not fail."""
    wrong: list[BaseException] = []

    def begin() -> None:
        try:
            StopOnInterrupt(print).on_train_start(cast(Any, None), cast(Any, None))
        except BaseException as error:
            wrong.append(error)

    before = {each: signal.getsignal(each) for each in SIGNALS}
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert wrong == [] and {each: signal.getsignal(each) for each in SIGNALS} == before
