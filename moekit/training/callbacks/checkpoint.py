"""When a run saves: after every validation, and at its end; by one callback, which also knows the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from moekit.checkpoints.pointers import Retention, last_of, recover, step_name, step_of, target_of, write_pointer
from moekit.errors import SaveError
from moekit.training.checkpoint_io import AtomicCheckpointIO

MONITOR = "val/loss"


class SaveCheckpoints(Checkpoint):
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
        path, keeping = self.folder / step_name(trainer.global_step), Retention(best=is_best, keep=self.keep)
        try:
            trainer.save_checkpoint(path, storage_options=keeping)
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
