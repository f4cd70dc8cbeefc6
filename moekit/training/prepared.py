"""A run before its first step."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L

from moekit.checkpoints.reading import Checkpoint
from moekit.training.folder import RunFolder
from moekit.training.interrupt import StopOnInterrupt
from moekit.training.logs import LoadHistory, RunLog
from moekit.training.module import LitMoE


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
