"""Runs that a signal, ``stop``, a callback or ``max_time`` ends: where they end, and that resuming changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, timer
from rich.console import Console
from training_helpers import trainer

from moekit import MoekitError, load
from moekit.checkpoints.files import steps_in, target_of
from moekit.checkpoints.reading import open_checkpoint
from moekit.tables import read_tables
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.outcome import read_summary
from moekit.training.run.train import train
from moekit.training.step import MAX_IN_A_ROW

Make = Callable[..., dict[str, Any]]


class Term(L.Callback):
    """Sends SIGTERM once: in training on a step, or before a batch of the validation after it."""

    def __init__(self, step: int, batch: int | None = None) -> None:
        self.at: tuple[int, int | None] | None = (step, batch)

    def _send(self, *here: int | None) -> None:
        if here == self.at:
            self.at = None
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._send(trainer.global_step + 1, None)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._send(trainer.global_step, batch_idx)


class Runs:
    """Trains and resumes runs of a tiny recipe, which validate and save after every second step."""

    def __init__(self, recipe: Make, root: Path) -> None:
        self.recipe = recipe
        self.root = root

    def new(self, name: str, *callbacks: L.Callback, stop: Any = None, **options: Any) -> RunFolder:
        options = {
            "max_steps": 8, "accelerator": "cpu", "val_check_interval": 2, "log_every_n_steps": 1,
            "enable_progress_bar": False, **options,
        }  # fmt: skip
        tree = self.recipe(trainer=options, stop=stop, checkpoints={"keep": 9}, data=self.recipe()["data"])
        self._train(load(tree), callbacks, name=name)
        (path,) = (self.root / name).iterdir()
        return RunFolder(path)

    def resume(self, run: RunFolder, *callbacks: L.Callback, overrides: tuple[str, ...] = ()) -> str:
        return self._train(load(run.spec, overrides), callbacks, resume=run)

    def _train(self, spec: Any, callbacks: tuple[L.Callback, ...], **options: Any) -> str:
        with redirect_stdout(StringIO()) as out:
            try:
                train(spec, root=self.root, console=Console(file=out, width=500), callbacks=callbacks, **options)
            except SystemExit as ended:
                assert ended.code == 0
        return out.getvalue()


@pytest.fixture
def runs(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])
    return Runs(recipe, tmp_path)


def saved(run: RunFolder) -> Any:
    return open_checkpoint(run.checkpoint()).whole()


def losses(run: RunFolder) -> dict[int, dict[str, float]]:
    return {
        step: {name: row[name] for name in ("train/loss", "val/loss") if name in row}
        for step, row in read_metrics(run.metrics).items()
    }


def layers(run: RunFolder) -> Any:
    return read_tables(run.routing)["layers"]


def assert_alike(a: RunFolder, b: RunFolder) -> None:
    """Two runs end with the same step, losses, weights, best checkpoint and states of callbacks."""
    one, two = saved(a), saved(b)
    assert one["global_step"] == two["global_step"] and losses(a) == losses(b)
    assert all(torch.equal(tensor, two["state_dict"][name]) for name, tensor in one["state_dict"].items())
    best = [target_of(run.checkpoints, "best") for run in (a, b)]
    assert best[0] is not None and best[1] is not None and best[0].name == best[1].name
    ours, theirs = (read_summary(run.summary) for run in (a, b))
    for key in ("steps", "validation", "stopped_after"):
        assert ours[key] == theirs[key]
    parts = [{(step, part) for step, part in zip(t["step"], t["part"], strict=True)} for t in map(layers, (a, b))]
    assert parts[0] == parts[1] and len(layers(a)["step"]) == len(layers(b)["step"])


STOP = {"metric": "val/loss", "below": 5.45}
STEPS_TO_STOP = 4  # of the whole run


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_and_stop_end_a_run_with_min_steps(runs: Runs) -> None:
    """A signal before ``min_steps``; ``stop`` at them, although it was reached before."""
    cut = runs.new("cut", Term(3), min_steps=6)
    assert list(steps_in(cut.checkpoints)) == [2, 3]
    stopped = runs.new("stopped", stop={"metric": "train/loss", "below": 9.0}, min_steps=3)
    assert saved(stopped)["global_step"] == 3 and read_summary(stopped.summary)["stopped_after"] == 0


@pytest.mark.parametrize(("batch", "at_end"), [(None, False), (1, False), (None, True), (0, True)])
def test_a_validation_that_a_signal_prevents_is_made_up_for(runs: Runs, batch: int | None, at_end: bool) -> None:
    """Before it or within it, whether steps are left to train or not. ``EarlyStopping`` counts each validation once."""

    def callbacks() -> list[L.Callback]:
        return [EarlyStopping("val/loss", min_delta=9.0), EarlyStopping("train/loss", patience=9)]

    steps = 4 if at_end else 8
    whole = runs.new("whole", *callbacks(), max_steps=steps)
    cut = runs.new("cut", Term(4, batch), *callbacks(), max_steps=steps)
    assert saved(cut)["global_step"] == 4 and "val/loss" not in losses(cut)[4] and not cut.summary.exists()
    assert "after step 4, which is validated first\n" in runs.resume(cut, *callbacks())
    assert_alike(cut, whole)
    if at_end:
        assert ", which is validated first\n" in runs.resume(cut, *callbacks())  # again, and nothing changes
        assert_alike(cut, whole)
    else:
        states = [saved(run)["callbacks"] for run in (cut, whole)]
        ours, theirs = ({k: s[k]["wait_count"] for k in s if "EarlyStopping" in k} for s in states)
        assert ours == theirs and len(ours) == 2


@pytest.mark.parametrize("batch", [None, 1])
def test_a_stop_by_a_validation_that_a_signal_prevents_is_made_up_for(runs: Runs, batch: int | None) -> None:
    whole = runs.new("whole", stop=STOP)
    assert saved(whole)["global_step"] == STEPS_TO_STOP
    cut = runs.new("cut", Term(STEPS_TO_STOP, batch), stop=STOP)
    runs.resume(cut)
    assert_alike(cut, whole)


def test_early_stopping_does_not_fail_after_a_signal_in_the_first_validation(runs: Runs) -> None:
    """It has no metric yet."""
    cut = runs.new("cut", Term(2, 0), EarlyStopping("val/loss"))
    assert list(steps_in(cut.checkpoints)) == [2]


# ---- runs that are over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [STOP, {"metric": "train/loss", "below": 5.5}])
def test_a_run_that_stop_ended_is_over_unless_stop_changes(runs: Runs, stop: dict[str, Any]) -> None:
    run = runs.new("stopped", stop=stop)
    step, after = saved(run)["global_step"], read_summary(run.summary)["stopped_after"]
    assert after < 8
    said = runs.resume(run, overrides=("trainer.max_steps=20",))
    assert f": stop was reached after {after} steps; nothing is left to do, unless stop changes\n" in said
    assert saved(run)["global_step"] == step and read_summary(run.summary)["stopped_after"] == after
    runs.resume(run, overrides=("stop.below=0",))
    assert saved(run)["global_step"] == 8


def test_a_run_that_early_stopping_ended_is_over_unless_it_is_removed(runs: Runs) -> None:
    run = runs.new("stopped", EarlyStopping("val/loss", min_delta=9.0, patience=2))
    assert saved(run)["global_step"] == 6
    said = runs.resume(run, EarlyStopping("val/loss", min_delta=9.0, patience=2))
    assert ": EarlyStopping has ended it; nothing is left to do, unless its patience grows or it is removed\n" in said
    assert saved(run)["global_step"] == 6
    runs.resume(run)
    assert saved(run)["global_step"] == 8


# ---- the end of a step -----------------------------------------------------------------------------------------------


class Clock(L.Callback):
    """The time: a minute passes in the first micro-batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.now = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step and batch_idx % trainer.accumulate_grad_batches == 0:
            self.now += 60


def test_max_time_ends_a_run_with_a_whole_step_and_each_process_has_as_much(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(step: int) -> Clock:
        made = Clock(step)
        monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: made.now))
        return made

    options = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    whole = runs.new("whole", **options)
    cut = runs.new("cut", clock(3), max_time="00:00:01:00", **options)
    assert saved(cut)["global_step"] == 3
    said = runs.resume(cut, clock(5))
    assert f"\ntrainer.max_time is over after step 5; resume: moekit train --resume {cut.path}\n" in said
    assert "max_time is over" not in runs.resume(cut, clock(8))  # it is the last anyway
    ours, theirs = ({step: row["train/loss"] for step, row in losses(run).items()} for run in (cut, whole))
    assert ours == theirs


@pytest.mark.usefixtures("quiet_lightning")
def test_a_callback_that_stops_within_a_step_stops_after_it(recipe: Make) -> None:
    class Stopping(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = trainer.should_stop or batch_idx == 3

    t = trainer(6, limit_val_batches=0, accumulate_grad_batches=3, val_check_interval=3, callbacks=[Stopping()])
    t.fit(LitMoE(recipe()))
    assert t.global_step == 2 and t.fit_loop.total_batch_idx == 5


# ---- what else a checkpoint must hold --------------------------------------------------------------------------------


def test_without_validations_checkpoints_are_saved_as_often(runs: Runs) -> None:
    """Also for another number of micro-batches; a resumed run then equals a whole one."""
    whole = runs.new("whole", limit_val_batches=0, accumulate_grad_batches=2, val_check_interval=4)
    assert list(steps_in(whole.checkpoints)) == [2, 4, 6, 8]
    path = whole.checkpoints / "step-00000004"
    chosen = RunFolder(whole.path, path)
    before = losses(whole)
    runs.resume(chosen)
    assert losses(whole) == before and list(steps_in(whole.checkpoints)) == [2, 4, 6, 8]
    runs.resume(chosen, overrides=("trainer.accumulate_grad_batches=1",))
    assert list(steps_in(whole.checkpoints)) == [2, 4, 8]


class Broken(L.Callback):
    """Makes the gradients of all steps but the first NaN."""

    def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.global_step:
            next(p.grad for p in module.parameters() if p.grad is not None).fill_(float("nan"))


@pytest.mark.usefixtures("quiet_lightning")
def test_a_resumed_run_ends_with_the_same_number_of_skips_in_a_row(recipe: Make, tmp_path: Path) -> None:
    tree = recipe(non_finite="skip")
    first = trainer(5, limit_val_batches=0, callbacks=[Broken()])
    first.fit(LitMoE(tree))
    first.save_checkpoint(tmp_path / "five.ckpt")
    t = trainer(40, limit_val_batches=0, callbacks=[Broken()])
    with pytest.raises(MoekitError, match=f"step {1 + MAX_IN_A_ROW}: .*[\\s\\S]* {MAX_IN_A_ROW} steps in a row"):
        t.fit(LitMoE(tree), ckpt_path=tmp_path / "five.ckpt", weights_only=True)
