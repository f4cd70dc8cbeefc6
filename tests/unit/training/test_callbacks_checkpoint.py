"""The callback that saves checkpoints: which it keeps, a full disk, and resuming after a kill."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from moekit.checkpoints import writing
from moekit.checkpoints.files import last_of, step_name, steps_in, target_of, write_pointer
from moekit.checkpoints.reading import is_intact, open_checkpoint
from moekit.errors import SaveError
from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.callbacks.checkpoint import SaveCheckpoints
from moekit.training.metrics import Validation
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("quiet_lightning")


def fit(
    recipe: Make,
    folder: Path,
    steps: int,
    start: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
    **changes: Any,
) -> L.Trainer:
    """Trains with a validation, and thus a save, after every second step."""
    options = {
        "max_steps": steps, "accelerator": "cpu", "precision": "32-true", "val_check_interval": 2,
        "enable_progress_bar": False,
    }  # fmt: skip
    spec = load(recipe(trainer={**options, **changes.pop("trainer", {})}, **changes))
    trainer = make_trainer(spec, RunFolder(folder), callbacks=callbacks)
    trainer.fit(LitMoE(spec), ckpt_path=start)
    return trainer


def callback(trainer: L.Trainer) -> SaveCheckpoints:
    (found,) = trainer.checkpoint_callbacks
    assert isinstance(found, SaveCheckpoints)
    return found


def test_the_newest_are_kept_and_the_one_with_the_lowest_loss(recipe: Make, tmp_path: Path) -> None:
    trainer = fit(recipe, tmp_path, 8, checkpoints={"keep": 2})
    folder, best = tmp_path / "checkpoints", callback(trainer).best_step
    assert set(steps_in(folder)) == {6, 8, best}
    assert (last_of(folder), target_of(folder, "best")) == (folder / step_name(8), folder / step_name(best))
    saved = open_checkpoint(folder / "last").plain
    (state,) = (s for name, s in saved["callbacks"].items() if "SaveCheckpoints" in name)
    losses = state.pop("losses")
    assert state == {"best": callback(trainer).best, "best_step": best} and losses[best] == state["best"]
    assert set(losses) == {6, 8, best}


def test_best_counts_the_losses_before_a_run_was_resumed(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest of all; the first of equal ones."""
    losses = iter([3.0, 1.0, 2.0, 1.5, 1.2, 1.0, 0.5])  # at steps 2, 4, ...
    monkeypatch.setattr(Validation, "take", lambda _: {"val/loss": next(losses)})
    folder = tmp_path / "checkpoints"
    start = None
    for steps, best in ((8, 4), (12, 4), (14, 14)):
        trainer = fit(recipe, tmp_path, steps, start, checkpoints={"keep": 1})
        start = folder / step_name(steps)
        assert target_of(folder, "best") == folder / step_name(best) and set(steps_in(folder)) == {best, steps}
        assert callback(trainer).best_step == best and is_intact(folder / step_name(best))


@pytest.mark.parametrize("relative", [False, True])
def test_the_chosen_checkpoint_is_not_removed(
    recipe: Make, tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although ``last`` names an earlier one, as if the run had been resumed from there."""
    folder = tmp_path / "checkpoints"
    fit(recipe, tmp_path, 6, checkpoints={"keep": 9})
    write_pointer(folder, "last", step_name(2))
    monkeypatch.chdir(tmp_path)
    start = Path("checkpoints" if relative else folder) / step_name(4)
    fit(recipe, tmp_path, 8, start=start, checkpoints={"keep": 9}, trainer={"limit_val_batches": 0})
    assert list(steps_in(folder)) == [2, 4, 6, 8] and last_of(folder) == folder / step_name(8)


def test_a_run_without_validation_saves_as_often_and_its_end(recipe: Make, tmp_path: Path) -> None:
    fit(recipe, tmp_path, 3, trainer={"limit_val_batches": 0})
    assert list(steps_in(tmp_path / "checkpoints")) == [2, 3] and not (tmp_path / "checkpoints" / "best").exists()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_reported_and_training_continues(
    recipe: Make,
    tmp_path: Path,
    asynchronous: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full at step 4, not at step 6; then full at the end."""
    real, full_at = writing.write_tensors, {4}

    def sometimes(path: Path, *args: Any) -> Any:
        if int(path.parent.name[-8:]) in full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args)

    monkeypatch.setattr(writing, "write_tensors", sometimes)
    folder, options = tmp_path / "checkpoints", {"checkpoints": {"asynchronous": asynchronous, "keep": 9}}
    fit(recipe, tmp_path, 6, **options)
    assert list(steps_in(folder)) == [2, 6] and all(map(is_intact, steps_in(folder).values()))
    said = capsys.readouterr().out
    assert f"could not save the checkpoint {folder / step_name(4)}: No space left on device" in said
    assert f"the last intact one is untouched: {folder / step_name(2)}\n  training continues" in said
    full_at |= {8}
    with pytest.raises(SaveError, match="it was the run's last checkpoint: make room, and resume from"):
        fit(recipe, tmp_path, 8, start=folder / step_name(6), **options)
    assert last_of(folder) == folder / step_name(6) and list(steps_in(folder)) == [2, 6]
    assert not list(folder.glob(".tmp*"))


def test_an_asynchronous_save_equals_a_synchronous_one(recipe: Make, tmp_path: Path) -> None:
    trees = []
    for asynchronous in (False, True):
        fit(recipe, tmp_path / str(asynchronous), 4, checkpoints={"asynchronous": asynchronous})
        trees.append(open_checkpoint(tmp_path / str(asynchronous) / "checkpoints" / "last").whole())
    a, b = trees
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    for name, state in a["optimizer_states"][0]["state"].items():
        assert all(torch.equal(tensor, b["optimizer_states"][0]["state"][name][key]) for key, tensor in state.items())
    assert a["loops"] == b["loops"] and a["lr_schedulers"] == b["lr_schedulers"]


def test_resuming_a_complete_run_repairs_a_kill_in_its_last_save(recipe: Make, tmp_path: Path) -> None:
    """A kill between writing ``last`` and ``best``. Choosing an older checkpoint without training changes nothing."""
    folder = tmp_path / "checkpoints"
    best = callback(fit(recipe, tmp_path, 6, checkpoints={"keep": 9})).best_step
    write_pointer(folder, "best", step_name(2 if best == 4 else 4))
    (folder / ".best.tmp").write_text("half")
    fit(recipe, tmp_path, 4, start=folder / step_name(4))
    assert (folder / ".best.tmp").is_file() and last_of(folder) == folder / step_name(6)
    fit(recipe, tmp_path, 6, start=folder / step_name(6), checkpoints={"keep": 9})
    assert not list(folder.glob(".*")) and target_of(folder, "best") == folder / step_name(best)
    assert last_of(folder) == folder / step_name(6) and set(steps_in(folder)) == {2, 4, 6}


def test_resuming_an_older_checkpoint_removes_later_ones(recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    fit(recipe, tmp_path, 8, checkpoints={"keep": 9})
    fit(recipe, tmp_path, 6, start=folder / step_name(4), checkpoints={"keep": 9})
    assert list(steps_in(folder)) == [2, 4, 6] and last_of(folder) == folder / step_name(6)
    assert target_of(folder, "best") in steps_in(folder).values()


class Killed(L.Callback):
    """Ends training in a step, before it is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise ConnectionAbortedError("killed")


@pytest.mark.parametrize(
    ("losses", "back", "best", "found", "then"),
    [
        ([3.0, 4.0, 3.5, 2.0, 1.0], 6, 6, 3.5, 8),  # the best of the first three was removed for that of step 8
        ([3.0, 4.0, 5.0, 4.5, 2.0], 8, 2, 3.0, 2),  # it is still there
        ([math.inf, 4.0, 3.0, 2.0, 1.0], 2, -1, math.inf, 4),  # there was none
    ],
)
def test_best_is_chosen_anew_after_going_back(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    losses: list[float], back: int, best: int, found: float, then: int,
) -> None:  # fmt: skip
    """It never names a step of the abandoned branch, and a loss is the best that is lower than that of a checkpoint."""
    values = iter(losses)
    monkeypatch.setattr(Validation, "take", lambda _: {"val/loss": next(values)})
    folder = tmp_path / "checkpoints"
    fit(recipe, tmp_path, 10, checkpoints={"keep": 3 if best == 6 else 5})
    assert target_of(folder, "best") == folder / step_name(10)
    seen: list[Any] = []

    class Look(Killed):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            seen[:] = [callback(trainer).best_step, callback(trainer).best, target_of(folder, "best")]
            super().on_train_batch_start(trainer, *args)

    with pytest.raises(ConnectionAbortedError, match="killed"):
        fit(recipe, tmp_path, 10, folder / step_name(back), [Look(back)])
    assert seen == [best, found, folder / step_name(best) if best > 0 else None]
    assert steps_in(folder).keys() >= {back, 10} and last_of(folder) == folder / step_name(back)
    monkeypatch.setattr(Validation, "take", lambda _: {"val/loss": 3.2})
    fit(recipe, tmp_path, back + 2, folder / step_name(back))
    assert target_of(folder, "best") == folder / step_name(then)


def test_going_back_deletes_no_checkpoint_before_a_newer_save(recipe: Make, tmp_path: Path) -> None:
    """Killed right after going back, and once more when resumed: each later checkpoint is still there, and whole."""
    folder = tmp_path / "checkpoints"
    fit(recipe, tmp_path, 12, checkpoints={"keep": 9})
    for start in (folder / step_name(4), folder / "last"):
        with pytest.raises(ConnectionAbortedError, match="killed"):
            fit(recipe, tmp_path, 12, RunFolder(tmp_path, start).checkpoint(), [Killed(5)], checkpoints={"keep": 9})
        assert list(steps_in(folder)) == [2, 4, 6, 8, 10, 12] and all(map(is_intact, steps_in(folder).values()))
        assert last_of(folder) == folder / step_name(4)
    fit(recipe, tmp_path, 6, folder / step_name(4), checkpoints={"keep": 9})
    assert list(steps_in(folder)) == [2, 4, 6] and last_of(folder) == folder / step_name(6)


def test_resuming_a_complete_run_removes_what_a_kill_in_its_last_prune_left(recipe: Make, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    fit(recipe, tmp_path, 6, checkpoints={"keep": 9})
    best = callback(fit(recipe, tmp_path, 6, folder / step_name(6), checkpoints={"keep": 1})).best_step
    assert set(steps_in(folder)) == {6, best}


def test_resuming_repairs_a_kill_between_writing_two_pointers(recipe: Make, tmp_path: Path) -> None:
    """``best`` is older than the newest checkpoint says; a half-written checkpoint, and an orphan, are removed."""
    folder = tmp_path / "checkpoints"
    trainer = fit(recipe, tmp_path, 6, checkpoints={"keep": 9})
    best = callback(trainer).best_step
    write_pointer(folder, "best", step_name(2 if best != 2 else 4))
    for stray in (".tmp-new-step-00000008", step_name(8)):
        (folder / stray).mkdir()
    fit(recipe, tmp_path, 7, start=folder / step_name(6), checkpoints={"keep": 9}, trainer={"limit_val_batches": 0})
    assert target_of(folder, "best") == folder / step_name(best)
    assert {path.name for path in folder.glob("*step-*")} == {step_name(step) for step in (2, 4, 6, 7)}
