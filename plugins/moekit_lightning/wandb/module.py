"""Lightning's ``WandbLogger``, whose run is found again when training is resumed."""

from __future__ import annotations

import hashlib

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from moekit.extras import require
from moekit.training.run.hooks import RunInfo
from moekit_lightning.wandb import WandB


class OneRunLogger(WandbLogger):
    """Ends its run there with the training. Otherwise the next run in this process, of a baseline, would log to it."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run there."""
        super().finalize(status)
        import wandb

        if wandb.run is not None and wandb.run.id == self.version:
            wandb.run.finish(exit_code=0 if status == "success" else 1)


def wandb_logger(spec: WandB, run: RunInfo) -> WandbLogger:
    """The logger. The run's id there is a checksum of its folder, so that a resumed run has the same.

    Raises:
        MissingPackage: wandb is not installed.
    """
    require("wandb", "the logger 'wandb'", "wandb")
    return OneRunLogger(
        name=f"{run.name}/{run.label}" if run.label != run.name else run.name,
        id=hashlib.sha256(str(run.folder.absolute()).encode()).hexdigest()[:16],
        save_dir=run.folder,
        project=spec.project,
        entity=spec.entity or None,
        offline=spec.offline,
        tags=spec.tags,
        resume=None if spec.offline else "allow",
    )
