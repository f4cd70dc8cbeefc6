"""The interface of exporters, which write a trained model for programs other than moekit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


class Exporter(ABC):
    """Writes the model of a checkpoint in another format. Built as ``Target(spec)``."""

    @abstractmethod
    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        """Writes the model.

        Args:
            checkpoint: of a run; ``moekit.training.run.saved.read_any_checkpoint`` opens it, slice by slice.
            out: the file or folder to write; it must not exist yet.

        Returns:
            Lines to print: what was written, and what was omitted.

        Raises:
            MoekitError: the format cannot express the model, or ``out`` exists; nothing has been written.
            CheckpointError: the checkpoint is damaged.
        """
