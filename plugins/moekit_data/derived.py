"""What data that makes pairs of another data's text has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Data
from moekit.registry import build
from moekit_data.derived_spec import DerivedSpec
from moekit_data.text import TextData

VALIDATION_SEED = 0


class DerivedData(Data):
    """Base of data that makes a source and a target of each window of text. A subclass says how.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64, the target shifted by one, from the end token and to
    it; ``source.tokens`` int64 ``[B, S]`` with an S of its own; ``valid`` and ``source.valid`` False for padding;
    ``domain`` that of the text.

    What is drawn for a training batch comes from its generator; the validation set is always made with the same seed.

    Args:
        spec: its options.
    """

    def __init__(self, spec: DerivedSpec) -> None:
        self.spec = spec
        self.text: Data = build(spec.text)
        self.end = spec.text_vocab()

    @abstractmethod
    def pairs(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Makes a batch of pairs of one of windows of text (``text_of`` gives them, a row each)."""

    def prepare(self) -> None:
        """Has the text read.

        Raises:
            DataError: as the text says.
        """
        self.text.prepare()

    def train_batch(self, generator: torch.Generator) -> Batch:
        """Windows as the text draws them, made into pairs."""
        return self.pairs(self.text.train_batch(generator), generator)

    def validation_batches(self) -> Iterator[Batch]:
        """The text's validation set, made into the same pairs every time."""
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        return (self.pairs(batch, generator) for batch in self.text.validation_batches())

    def domain_names(self) -> Sequence[str]:
        """The text's."""
        return self.text.domain_names()

    def describe(self) -> Mapping[str, str]:
        """What the text says of itself."""
        return self.text.describe()

    def encode(self, text: str) -> Tensor:
        """Text as a source, int64 ``[S]``.

        Raises:
            MoekitError: as the text says.
        """
        return self.text.encode(text)

    def decode(self, ids: Tensor) -> str:
        """Tokens up to the end as text, a sentinel as ``<0>``, ``<1>`` and so on.

        Raises:
            MoekitError: as the text says.
        """
        parts: list[str] = []
        run: list[int] = []
        for token in [*ids.tolist(), self.end]:
            if token < self.end:
                run.append(token)
                continue
            parts.append(self.text.decode(torch.tensor(run, dtype=torch.int64)) if run else "")
            run = []
            if token == self.end:
                break
            parts.append(f"<{token - self.end - 1}>")
        return "".join(parts)

    def end_token(self) -> int | None:
        """The token after those of text."""
        return self.end

    def state(self) -> dict[str, Any]:
        """The text's."""
        return self.text.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Gives the text its state back.

        Raises:
            DataError: as the text says.
        """
        self.text.load_state(state)

    def num_bytes_V(self) -> Tensor | None:
        """int64 ``[V]``: bytes that each token spells, 0 for the end and sentinels; None where the text cannot say."""
        if not isinstance(self.text, TextData):
            return None
        of_text = self.text.num_bytes_V()
        return torch.cat([of_text, of_text.new_zeros(self.spec.vocab - len(of_text))])


def text_of(batch: Batch) -> list[Tensor]:
    """The windows of a batch of text, int64 ``[S]`` each, without padding."""
    if batch.valid is None:
        return list(batch.targets)
    return [row[valid] for row, valid in zip(batch.targets, batch.valid, strict=True)]
