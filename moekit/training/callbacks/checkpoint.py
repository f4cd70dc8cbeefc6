"""Checkpoints of a run: a callback that saves after every validation, and the plugin that writes and reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.plugins.io import CheckpointIO

from moekit.checkpoints.files import Retention, last_of, recover, remove, step_name, step_of, target_of, write_pointer
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Checkpoint, Handle, open_checkpoint
from moekit.checkpoints.writing import Background, save_tree
from moekit.compat import loop_counters
from moekit.errors import SaveError
from moekit.training.metrics import is_validated_step
from moekit.training.module import LitMoE

MONITOR = "val/loss"


class SaveCheckpoints(CheckpointCallback):
    """Saves ``step-…`` after every validation, or as often if validations are off.

    The pointer ``last`` names it, ``best`` the lowest ``val/loss``.

    If a save fails, a line says so and training continues: the next save may find room. If the last save fails, the
    run ends with an error, since its end is lost.

    Args:
        folder: of the run's checkpoints.
        keep: how many of the newest to keep, in addition to the best.
        report: prints a line.
    """

    def __init__(self, folder: Path, *, keep: int = 1, report: Callable[[str], object] = print) -> None:
        self.folder = folder
        self.keep = keep
        self.report = report
        self.best = math.inf
        self.best_step = -1
        self.losses: dict[int, float] = {}  # by step, of the checkpoints that may be kept
        self._saved = -1  # the last step that was saved
        self._failed: SaveError | None = None

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss so far, and its step; the losses of the checkpoints that are kept."""
        return {"best": self.best, "best_step": self.best_step, "losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.best, self.best_step = float(state_dict["best"]), int(state_dict["best_step"])
        self.losses = {int(step): float(loss) for step, loss in state_dict.get("losses", {}).items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes what a killed process left behind; makes the pointers name the checkpoint that the run resumes.

        They do not name it if the process was killed between writing the two, or if an older checkpoint was chosen.
        Then those of later steps stay until the next save is complete. If the best so far was removed for a later one,
        the best of those that are left takes its place.
        """
        start = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        if trainer.is_global_zero:
            recover(self.folder)
        if start is None or start.resolve().parent != self.folder.resolve():
            return
        self._saved = trainer.global_step
        there = {step: loss for step, loss in self.losses.items() if (self.folder / step_name(step)).is_dir()}
        if not (self.folder / step_name(self.best_step)).is_dir():
            self.best_step = min(there, key=there.__getitem__, default=-1)
            self.best = there.get(self.best_step, math.inf)
        if trainer.is_global_zero:
            if self.best_step < 0:
                remove(self.folder / "best")
            for name, step in (("last", step_of(start)), ("best", self.best_step)):
                path = self.folder / step_name(step)
                if path.is_dir() and path != target_of(self.folder, name):
                    write_pointer(self.folder, name, path.name)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, if the validation was part of training.

        One that a resumed run makes up for is of a step that is saved already: then only ``best`` may change.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        step, loss = trainer.global_step, float(trainer.callback_metrics.get(MONITOR, math.inf))
        if is_best := loss < self.best:
            self.best, self.best_step = loss, step
        if math.isfinite(loss):
            self.losses[step] = loss
        kept = {self.best_step, *sorted(self.losses)[-self.keep :]}
        self.losses = {each: loss for each, loss in self.losses.items() if each in kept}
        if step != self._saved:
            self._save(trainer, is_best)
        elif is_best and trainer.is_global_zero:
            write_pointer(self.folder, "best", step_name(step))
            Retention(keep=self.keep).prune(self.folder / step_name(step))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where a validation would be, if validations are off."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step != self._saved
        if is_step and is_validated_step(trainer) and not trainer.enable_validation and not trainer.should_stop:
            if isinstance(pl_module, LitMoE):
                pl_module.each_logger(lambda logger: logger.save())  # as before a validation's checkpoint
            self._save(trainer, is_best=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Counts the last micro-batch as complete, which it is not yet for Lightning in ``on_train_batch_end``."""
        for counters in loop_counters(checkpoint):
            counters["completed"] = counters["processed"]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last step, unless a validation did; waits for a background save.

        Raises:
            SaveError: the last save of the run failed.
        """
        if trainer.global_step != self._saved:
            self._save(trainer, is_best=False)
        self._wait(trainer)
        if self._failed is not None:
            raise SaveError(
                f"{self._failed}\n  it was the run's last checkpoint: make room, and resume from the one before it"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Completes the last save if nothing was left to train: the process may have been killed in it.

        It does not if an older checkpoint was chosen: then ``last`` stays the same.
        """
        last, start = last_of(self.folder), trainer.ckpt_path
        if self._saved < 0 and start is not None and last is not None and Path(start).resolve() == last.resolve():
            self.on_train_start(trainer, pl_module)
            if trainer.is_global_zero:
                Retention(keep=self.keep).prune(last)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits for a background save, whatever ended the run."""
        self._wait(trainer)

    def _save(self, trainer: L.Trainer, is_best: bool) -> None:
        self._saved = trainer.global_step
        self._wait(trainer)
        self._failed = None
        path, before = self.folder / step_name(trainer.global_step), last_of(self.folder)
        retention = Retention(best=is_best, keep=self.keep, after=None if before is None else step_of(before))
        try:
            trainer.save_checkpoint(path, storage_options=retention)
        except SaveError as error:
            self._record_failure(trainer, error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other ranks may be waiting

    def _wait(self, trainer: L.Trainer) -> None:
        io = trainer.strategy.checkpoint_io
        if isinstance(io, AtomicCheckpointIO):
            try:
                io.wait()
            except SaveError as error:
                self._record_failure(trainer, error)

    def _record_failure(self, trainer: L.Trainer, error: SaveError) -> None:
        self._failed = error
        if trainer.is_global_zero:
            self.report(f"\n{error}\n  training continues; the next checkpoint may find room")


class AtomicCheckpointIO(CheckpointIO):
    """A Lightning checkpoint plugin: ``Trainer(plugins=[AtomicCheckpointIO()])``. Local directories only.

    Args:
        asynchronous: save in the background, while training continues. The next save, or the end, raises its error.
        opened: the checkpoint to resume, if it is open already: its verified files are not verified again.
    """

    def __init__(self, *, asynchronous: bool = False, opened: Checkpoint | None = None) -> None:
        self._opened = opened
        self._background = Background() if asynchronous else None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Retention | None = None
    ) -> None:
        """Saves a directory, which appears only when it is complete.

        Args:
            checkpoint, path: plain values and tensors, and the directory to save.
            storage_options: which pointers will name it, and how many others to keep.

        Raises:
            SaveError: it could not be written; in the background: the previous one could not.
        """
        self._opened = None  # this save may overwrite or remove it
        step = checkpoint.get("global_step")
        save_tree(checkpoint, Path(path), step=step, retention=storage_options, background=self._background)

    def open(self, path: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint at a path: ``opened`` if it is that one and nothing was saved since, else newly opened.

        Raises:
            CheckpointError: it is missing, damaged or not a checkpoint.
        """
        if self._opened is not None and self._opened.path.resolve() == Path(path).resolve():
            return self._opened
        return open_checkpoint(Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """All of a checkpoint, on the CPU. Only plain values and tensors are in it, whatever ``weights_only`` is.

        Raises:
            CheckpointError: it is missing, damaged or not a checkpoint.
        """
        contents: dict[str, Any] = self.open(path).whole()
        return contents

    def load_handles(self, path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
        """The tree of a checkpoint; under the keys ``names`` each tensor is a ``Handle``, which reads slices.

        Raises:
            CheckpointError: it is missing, damaged or not a checkpoint.
        """
        plain: dict[str, Any] = self.open(path).plain
        return {key: value if key in names else map_leaves(value, Handle.whole, Handle) for key, value in plain.items()}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a directory."""
        remove(Path(path))

    def wait(self) -> None:
        """Waits for a background save.

        Raises:
            SaveError: it failed.
        """
        if self._background is not None:
            self._background.wait()

    def teardown(self) -> None:
        """Waits, at the end of training."""
        self.wait()
