"""A callback that writes the load of every layer and expert at each logged step to ``load.npz``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from moekit.errors import CheckpointError
from moekit.files import open_regular, replace_file
from moekit.training.run.metrics_log import LogWrites, lost_rows

LARGEST = 1 << 32  # bytes of a file that are read


class LoadHistory(Callback):
    """Records the load of every layer and expert at each logged step, and writes ``load.npz``.

    The file holds ``step`` (int64 ``[R]``) and each layer's load by its name (int64 ``[R, E]``), for R logged steps.

    Args:
        file: to write; an existing one is read first.
        last_step: rows of later steps are discarded, because a resumed run trains them again.
        writes: writes the file.

    Attributes:
        damage: why an existing file could not be used; empty if it could.
    """

    def __init__(self, file: Path, last_step: int = 0, writes: LogWrites | None = None) -> None:
        self.file = file
        saved, self.damage = salvage_loads(file)
        steps = saved.pop("step", np.zeros(0, dtype=np.int64))
        keep = steps <= last_step
        self.steps: list[int] = steps[keep].tolist()
        self.loads: dict[str, list[np.ndarray]] = {name: list(load[keep]) for name, load in saved.items()}
        self._writes = writes or LogWrites()
        self._recorded = 0  # the last step that the resumed run had recorded

    def state_dict(self) -> dict[str, Any]:
        """The last step that was recorded."""
        return {"step": self.steps[-1] if self.steps else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it.

        Raises:
            CheckpointError: the state is of another form.
        """
        if not isinstance(state_dict.get("step"), int):
            raise CheckpointError("the state of LoadHistory has no step")
        self._recorded = state_dict["step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports what the file lacks of the steps before the checkpoint."""
        if missing := lost_rows(self.damage, self.steps, self._recorded):
            self._writes.report(f"{self.file} {missing}: training does not need it, and logs on")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Adds a row if the step was logged."""
        load = pl_module.step_load
        step = pl_module.logged_step
        if load is None or step != trainer.global_step or (self.steps and self.steps[-1] >= step):
            return
        row = {name: load.load_E[name].to("cpu").numpy().astype(np.int64) for name in pl_module.sparse_layers}
        if self.steps and {n: e.shape for n, e in row.items()} != {n: e[-1].shape for n, e in self.loads.items()}:
            self.steps, self.loads = [], {}  # a file of other layers was in the place of this run's
        self.steps.append(step)
        for name, load_E in row.items():
            self.loads.setdefault(name, []).append(load_E)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the file, as often as checkpoints are written."""
        self.write()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the file a last time."""
        self.write()

    @rank_zero_only
    def write(self) -> None:
        """Writes ``load.npz``, if possible."""
        if self.loads:

            def save(path: Path) -> None:
                with path.open("wb") as file:
                    np.savez_compressed(file, step=np.array(self.steps, dtype=np.int64), **self.arrays())  # type: ignore[arg-type]

            self._writes.attempt(self.file, lambda: replace_file(self.file, save))

    def arrays(self) -> dict[str, np.ndarray]:
        """Load ``[R, E]`` by layer."""
        return {name: np.stack(rows) for name, rows in self.loads.items()}


def salvage_loads(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a ``load.npz``, and why they cannot be used; none and ``""`` without a file."""
    try:
        with open_regular(path, LARGEST) as file, np.load(file) as saved:
            arrays = dict(saved)
        _check_arrays(arrays)
        return arrays, ""
    except FileNotFoundError:
        return {}, ""
    except Exception as error:  # the packages zipfile, zlib and numpy raise a dozen kinds
        return {}, f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    steps = arrays["step"].tolist()
    if arrays["step"].ndim != 1 or any(a.dtype != np.int64 or len(a) != len(steps) for a in arrays.values()):
        raise ValueError("its arrays differ in length")
    if any(load.ndim != 2 for name, load in arrays.items() if name != "step"):
        raise ValueError("an array is not of rows of experts")
    if any(a >= b for a, b in pairwise(steps)):
        raise ValueError("its steps do not ascend")
