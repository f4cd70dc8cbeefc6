"""A callback that writes the load of every layer and expert at each logged step to ``load.npz``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from moekit.files import replace_file
from moekit.training.run.metrics_log import RunLog


class LoadHistory(Callback):
    """Records the load of every layer and expert at each logged step, and writes ``load.npz``.

    The file holds ``step`` (int64 ``[R]``) and each layer's load by its name (int64 ``[R, E]``), for R logged steps.

    Args:
        file: to write; an existing one is read first.
        upto: rows of later steps are discarded, because a resumed run trains them again.
    """

    def __init__(self, file: Path, last_step: int = 0) -> None:
        self.file = file
        self.steps: list[int] = []
        self.loads: dict[str, list[np.ndarray]] = {}
        if file.is_file():
            with np.load(file) as saved:
                keep = saved["step"] <= last_step
                self.steps = saved["step"][keep].tolist()
                self.loads = {name: list(saved[name][keep]) for name in saved.files if name != "step"}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Adds a row if the step was logged."""
        load = pl_module.step_load
        step = pl_module.logged_step
        if load is None or step != trainer.global_step or (self.steps and self.steps[-1] >= step):
            return
        self.steps.append(step)
        for name in pl_module.sparse_layers:
            self.loads.setdefault(name, []).append(load.load_E[name].to("cpu", torch.int64).numpy())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the files, as often as checkpoints are written."""
        self.write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the files a last time."""
        self.write(trainer)

    @rank_zero_only
    def write(self, trainer: L.Trainer) -> None:
        """Writes ``load.npz`` and the run's metrics file."""
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                logger.write()
        if self.loads:

            def save(path: Path) -> None:
                with path.open("wb") as file:
                    np.savez_compressed(file, step=np.array(self.steps, dtype=np.int64), **self.arrays())  # type: ignore[arg-type]

            replace_file(self.file, save)

    def arrays(self) -> dict[str, np.ndarray]:
        """Load ``[R, E]`` by layer."""
        return {name: np.stack(rows) for name, rows in self.loads.items()}
