"""The interface of tokenizers: text to tokens and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Tokenizer(ABC):
    """Turns text into tokens and back. Built as ``Target(spec)``."""

    @property
    @abstractmethod
    def spelling(self) -> Sequence[bytes]:
        """The bytes of text that each token spells, by its number: none for the end, or a tag.

        Empty before ``train`` or ``load_state`` if tokens are learnt.
        """

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Text as tokens, int64 ``[S]``, without an end.

        Raises:
            MoekitError: the tokens are not learnt yet.
        """

    def train(self, documents: Iterable[bytes]) -> None:
        """Learns the tokens from UTF-8 documents. By default there is nothing to learn."""
        return None

    def decode(self, ids: Tensor) -> str:
        """Tokens, int64 ``[S]``, as text. Invalid UTF-8 becomes U+FFFD; numbers that are no token spell nothing."""
        spelling = self.spelling
        return b"".join(spelling[i] for i in ids.tolist() if 0 <= i < len(spelling)).decode("utf-8", errors="replace")

    @property
    def end(self) -> int | None:
        """The token that ends a document or a target, and with which a decoder starts; None if there is none."""
        return None

    @property
    def begin(self) -> Sequence[int]:
        """The tokens that are put before a prompt: by default none."""
        return ()

    @property
    def stops(self) -> Sequence[int]:
        """The tokens at which a generated text ends: by default none, since after ``end`` comes another document."""
        return ()

    def example(self) -> str:
        """A short text that ``encode`` accepts, shown to users as an example of a prompt."""
        return "The "

    def describe(self) -> str:
        """The tokens in a few words, printed at the start of a run."""
        return f"{len(self.spelling):,} tokens"

    def stream(self, documents: Iterable[bytes]) -> Tensor:
        """UTF-8 documents as one row of tokens of any integer type, each with the end after it. Override for speed."""
        last = torch.tensor([] if self.end is None else [self.end], dtype=torch.int64)
        pieces = (piece for text in documents for piece in (self.encode(text.decode("utf-8")), last))
        return torch.cat([last[:0], *pieces])

    def num_bytes_V(self) -> Tensor | None:
        """int64 ``[V]``: how many bytes of text each token spells; None if those of a text do not add up to it."""
        return torch.tensor([len(piece) for piece in self.spelling])

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain values; saved in checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the result of ``state``, so that nothing needs to be learnt.

        Raises:
            DataError: it is the state of another kind of tokenizer, or damaged.
        """
        return None
