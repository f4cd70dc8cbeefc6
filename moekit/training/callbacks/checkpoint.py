"""When and how a run saves: a callback after every validation, and the plugin that writes what Lightning saves."""

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
from moekit.errors import SaveError

MONITOR = "val/loss"


class SaveCheckpoints(CheckpointCallback):
    """Saves ``step-…`` after every validation, has ``last`` name it, and ``best`` the lowest ``val/loss``.

    A save that fails is told in a line, and training goes on: the next one may find room. The run ends with an error
    if it is the last one that failed, for then its end is lost.

    Args:
        folder: of checkpoints.
        keep: how many of the newest stay, besides the best.
        tell: says a line to the user.
    """

    def __init__(self, folder: Path, *, keep: int = 1, tell: Callable[[str], object] = print) -> None:
        self.folder = folder
        self.keep = keep
        self.tell = tell
        self.best = math.inf
        self.best_step = -1
        self._saved = -1  # the step that was saved last
        self._failed: SaveError | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.best, self.best_step = float(state_dict["best"]), int(state_dict["best_step"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clears away what a killed process left; has the pointers name what the run goes on from, where they do not.

        A kill came between the two, or the run was gone back on. Not before: until a checkpoint is loaded,
        ``trainer.ckpt_path`` does not say which, and it could be cleared away.
        """
        start = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        if trainer.is_global_zero:
            recover(self.folder, start)
        if start is None or start.resolve().parent != self.folder.resolve():
            return
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            for name, step in (("last", step_of(start)), ("best", self.best_step)):
                named, path = target_of(self.folder, name), self.folder / step_name(step)
                if path.is_dir() and path != named:
                    write_pointer(self.folder, name, path.name)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, in training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step != self._saved:
            loss = trainer.callback_metrics.get(MONITOR)
            if is_best := loss is not None and float(loss) < self.best:
                self.best, self.best_step = float(loss), trainer.global_step
            self._save(trainer, is_best)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves where no validation did; waits for what is being written.

        Raises:
            SaveError: the end of the run could not be saved.
        """
        if trainer.global_step != self._saved:
            self._save(trainer, is_best=False)
        self._wait(trainer)
        if self._failed is not None:
            raise SaveError(
                f"{self._failed}\n  it was the last of the run: make room, and go on from the one before it"
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What ``on_train_start`` does, where nothing was left to train: a kill may have come in the last save.

        Not where an older checkpoint was asked for, and nothing trained: ``last`` stays what it is.
        """
        last, start = last_of(self.folder), trainer.ckpt_path
        if self._saved < 0 and start is not None and last is not None and Path(start).resolve() == last.resolve():
            self.on_train_start(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits for what is being written, whatever ended the run."""
        self._wait(trainer)

    def _save(self, trainer: L.Trainer, is_best: bool) -> None:
        self._saved = trainer.global_step
        self._wait(trainer)
        self._failed = None
        path, retention = self.folder / step_name(trainer.global_step), Retention(best=is_best, keep=self.keep)
        try:
            trainer.save_checkpoint(path, storage_options=retention)
        except SaveError as error:
            self._note(trainer, error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # others may be waiting there

    def _wait(self, trainer: L.Trainer) -> None:
        io = trainer.strategy.checkpoint_io
        if isinstance(io, AtomicCheckpointIO):
            try:
                io.wait()
            except SaveError as error:
                self._note(trainer, error)

    def _note(self, trainer: L.Trainer, error: SaveError) -> None:
        self._failed = error
        if trainer.is_global_zero:
            self.tell(f"\n{error}\n  training goes on; the next checkpoint may find room")


class AtomicCheckpointIO(CheckpointIO):
    """A Lightning checkpoint plugin: ``Trainer(plugins=[AtomicCheckpointIO()])``. Local directories only.

    Args:
        asynchronous: write while training goes on. What goes wrong is raised by the next save, or at the end.
        opened: the checkpoint that is gone on from: of its files, those that were compared are not compared again.
    """

    def __init__(self, *, asynchronous: bool = False, opened: Checkpoint | None = None) -> None:
        self._opened = opened
        self._behind = Background() if asynchronous else None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Retention | None = None
    ) -> None:
        """Saves a directory, which appears when it is whole.

        Args:
            checkpoint: plain values and tensors.
            path: of the directory.
            storage_options: which pointers are to name it, and how many others stay.

        Raises:
            SaveError: it could not be written; asynchronously: the one before.
        """
        self._opened = None  # which may be saved over, or removed as one too many
        step = checkpoint.get("global_step")
        save_tree(checkpoint, Path(path), step=step, retention=storage_options, background=self._behind)

    def open(self, path: str | os.PathLike[str]) -> Checkpoint:
        """A checkpoint: the one that is open already, until something is saved, or one that is opened now.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        if self._opened is not None and self._opened.path.resolve() == Path(path).resolve():
            return self._opened
        return open_checkpoint(Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """All of a checkpoint, on the CPU: it holds plain values and tensors, whatever ``weights_only`` asks for.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        contents: dict[str, Any] = self.open(path).whole()
        return contents

    def load_handles(self, path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
        """The tree of a checkpoint; below the keys ``names`` each tensor is a ``Handle``, which reads slices.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        plain: dict[str, Any] = self.open(path).plain
        return {key: value if key in names else map_leaves(value, Handle.whole, Handle) for key, value in plain.items()}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a directory."""
        remove(Path(path))

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            SaveError: what was, could not be.
        """
        if self._behind is not None:
            self._behind.wait()

    def teardown(self) -> None:
        """The same, at the end."""
        self.wait()
