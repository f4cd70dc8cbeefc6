"""The interface of converters, which make the weights that a run starts from out of those of another model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moekit.spec.kinds import ModelSpec


class Weight(Protocol):
    """A tensor that is read, or made, slice by slice: that of a checkpoint, or what a converter makes of some."""

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Of every slice."""

    def read(self, offset: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        """The slice of shape ``sizes`` at ``offset``, on the CPU.

        Raises:
            CheckpointError: a file is damaged.
        """


class Converter(ABC):
    """Makes a model's first weights out of those of a model of another form. Built as ``Target(spec)``."""

    @abstractmethod
    def convert(self, model: ModelSpec, checkpoint: Path) -> Mapping[str, Weight]:
        """The tensors of a model, by their names in its ``state_dict``; each rank reads its slices alone.

        Args:
            model: what is to be made.
            checkpoint: of the run that ``start.run`` names.

        Raises:
            MoekitError: the model cannot be made of that one.
            CheckpointError: the checkpoint is damaged.
        """
