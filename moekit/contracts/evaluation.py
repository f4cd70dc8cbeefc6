"""The interfaces of what runs on a trained model: evaluators; exporters, which write it for other programs; and
converters, which make the weights that another run starts from out of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moekit.contracts.run import Data, Model, Source
from moekit.contracts.tokenizer import Tokenizer
from moekit.errors import MoekitError
from moekit.spec.kinds import ModelSpec


class Generate(Protocol):
    """Generates greedily with a trained model."""

    def __call__(self, given: Source | Tensor, *, max_tokens: int) -> list[Tensor]:
        """The most likely tokens, int64 on the CPU.

        Args:
            given: sources, for a model that takes pairs; or a text to continue, int64 ``[S]``.
            max_tokens: how many to generate at most.

        Returns:
            The targets of all sources, each without the end; or the continuation alone, in a list of one.
        """


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What an evaluator gets.

    Attributes:
        model: in evaluation mode.
        data: prepared.
        folder: the run's folder, for files.
        generate: generates with the model.
    """

    model: Model
    data: Data
    folder: Path
    generate: Generate

    @property
    def tokenizer(self) -> Tokenizer:
        """The data's tokenizer.

        Raises:
            MoekitError: the data is not text.
        """
        if self.data.tokenizer is None:
            raise MoekitError(f"{type(self.data).__name__} has no tokenizer: it is not text")
        return self.data.tokenizer


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluator found.

    Attributes:
        values: numbers by metric; ``EvaluatorSpec.metrics`` declares them.
        files: what it wrote.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()


class Evaluator(ABC):
    """Evaluates a trained model: scores that are no mean over tokens (BLEU), pictures. Built as ``Target(spec)``."""

    @abstractmethod
    def evaluate(self, trained: Trained) -> Evaluation:
        """Evaluates, once at the end of a run, without gradients."""


class Exporter(ABC):
    """Writes the model of a checkpoint in another format. Built as ``Target(spec)``."""

    def usual_place(self, checkpoint: Path) -> Path:
        """Where the exporter that is the default writes the model, if the user names no place.

        Raises:
            MoekitError: the user must name one.
        """
        raise MoekitError(f"{type(self).__name__} needs a place to write to\n  expected moekit export RUN OUT")

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
