"""``Prepared``: everything that a run consists of, before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import lightning as L

from moekit.checkpoints.reading import Checkpoint
from moekit.contracts import Evaluator
from moekit.training.callbacks.interrupt import StopOnInterrupt
from moekit.training.callbacks.load_history import LoadHistory
from moekit.training.module import LitMoE
from moekit.training.run.events import RunInfo
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import RunLog


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that has passed every check and has not written anything yet.

    Attributes:
        evaluators: of the trained model, by name.
        checkpoint: to resume; None for a new run.
    """

    info: RunInfo
    folder: RunFolder
    module: LitMoE
    trainer: L.Trainer
    log: RunLog
    loads: LoadHistory
    interrupt: StopOnInterrupt
    evaluators: Mapping[str, Evaluator]
    checkpoint: Checkpoint | None
