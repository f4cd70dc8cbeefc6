"""Lightning's ``WandbLogger``, whose run is found again when training is resumed."""

from __future__ import annotations

import hashlib

from lightning.pytorch.loggers import WandbLogger

from moekit.training.run.events import RunInfo
from moekit_lightning.wandb import WandB


def wandb_logger(spec: WandB, run: RunInfo) -> WandbLogger:
    """The logger. The run's id there is a checksum of its folder, so that a resumed run has the same.

    Raises:
        ImportError: wandb is not installed.
    """
    return WandbLogger(
        name=f"{run.name}/{run.label}" if run.label != run.name else run.name,
        id=hashlib.sha256(str(run.folder.absolute()).encode()).hexdigest()[:16],
        save_dir=run.folder,
        project=spec.project,
        entity=spec.entity or None,
        offline=spec.offline,
        tags=spec.tags,
        resume=None if spec.offline else "allow",
    )
