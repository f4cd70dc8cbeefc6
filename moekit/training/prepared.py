"""A run before its first step."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L

from moekit.checkpoints.reading import Checkpoint
from moekit.training.callbacks.interrupt import StopOnInterrupt
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import LoadHistory, RunLog


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has passed every check, and has written nothing yet."""

    label: str
    folder: RunFolder
    module: LitMoE
    trainer: L.Trainer
    log: RunLog
    loads: LoadHistory
    interrupt: StopOnInterrupt
    checkpoint: Checkpoint | None  # to go on from
    done: int  # optimizer steps that the checkpoint has behind it
