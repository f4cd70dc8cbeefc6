"""Source-target pairs that are made of another data set's text: what all of them have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Data, Place, Tokenizer
from moekit.errors import DataError
from moekit.registry import build
from moekit_data.sentinels import SentinelTokenizer
from moekit_data.specs import DerivedSpec

VALIDATION_SEED = 0


class DerivedData(Data):
    """Base of data that makes a source and a target of each window of text. Subclasses define ``pairs``.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64: the target after the end token, and the target before
    it; ``source.tokens`` int64 ``[B, S]`` with an S of its own; ``valid`` and ``source.valid`` False for padding;
    ``domain`` that of the text.

    A training batch's generator makes all its random choices; the validation set always uses the same seed. Errors of
    reading, encoding and loading are those of the text.

    Raises:
        DataError: the text has no tokenizer.
    """

    def __init__(self, spec: DerivedSpec) -> None:
        self.spec = spec
        self.text: Data = build(spec.text)
        self.end = spec.text_vocab()
        if self.text.tokenizer is None:
            raise DataError(f"{type(self.text).__name__} has no tokenizer, so no pairs can be made of its text")
        self.tokenizer: Tokenizer = SentinelTokenizer(
            self.text.tokenizer, end=self.end, sentinels=spec.num_sentinels(), vocab=spec.vocab
        )

    @abstractmethod
    def pairs(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Makes a batch of pairs of a batch of text (``text_of`` returns its windows, one for each row)."""

    def prepare(self) -> None:
        """Prepares the text."""
        self.text.prepare()

    def train_batch(self, generator: torch.Generator) -> Batch:
        """A training batch of the text, made into pairs."""
        return self.pairs(self.text.train_batch(generator), generator)

    def partial_batch(self, generator: torch.Generator, share: float) -> Batch:
        """A smaller training batch of the text, made into pairs."""
        return self.pairs(self.text.partial_batch(generator, share), generator)

    def batch_at(self, place: Place, generator: torch.Generator, share: float = 1.0) -> Batch:
        """The text's batch of a place in the run, made into pairs."""
        return self.pairs(self.text.batch_at(place, generator, share), generator)

    def validation_batches(self) -> Iterator[Batch]:
        """The text's validation set, made into the same pairs every time."""
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        return (self.pairs(batch, generator) for batch in self.text.validation_batches())

    def domain_names(self) -> Sequence[str]:
        """The text's."""
        return self.text.domain_names()

    def describe(self) -> Mapping[str, str]:
        """The description of the text."""
        return self.text.describe()

    def fingerprint(self) -> str:
        """The text's."""
        return self.text.fingerprint()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the text's state."""
        self.text.load_state(state)


def text_of(batch: Batch) -> list[Tensor]:
    """The windows of a batch of text, int64 ``[S]`` each, without padding."""
    if batch.valid is None:
        return list(batch.targets)
    return [row[valid] for row, valid in zip(batch.targets, batch.valid, strict=True)]
