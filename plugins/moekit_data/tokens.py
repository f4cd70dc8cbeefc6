"""Tokens: bytes of UTF-8, or byte pairs learnt from text. Both spell any text exactly.

The byte 0, which text cannot contain, joins documents. Under byte pairs it stays a token of its own, for no merge is
ever learnt with it. It spells no text: its length counts 0 bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.errors import DataError

SEPARATOR = b"\0"


class Tokens(ABC):
    """Turns text into token numbers and back.

    Attributes:
        spelling: the bytes that each token spells, by its number; the separator's are ``SEPARATOR``.
        dtype: the smallest type that holds a token.
        state: what ``from_state`` needs, as plain values; empty for bytes.
    """

    spelling: Sequence[bytes]
    dtype: torch.dtype
    state: Mapping[str, Any]

    @abstractmethod
    def encode(self, documents: Iterable[bytes]) -> Tensor:
        """UTF-8 documents as one stream of ``dtype``, a separator after each."""

    @abstractmethod
    def encode_text(self, text: str) -> Tensor:
        """Text as tokens, int64 ``[S]``, without a separator."""

    def decode(self, ids: Tensor) -> str:
        """Tokens ``[S]`` as text. Separators and numbers that were never learnt spell nothing."""
        known = [self.spelling[i] for i in ids.tolist() if 0 <= i < len(self.spelling)]
        return b"".join(piece for piece in known if piece != SEPARATOR).decode("utf-8", errors="replace")

    def num_bytes_V(self) -> Tensor:
        """int64: bytes of text that each token spells; 0 for the separator."""
        return torch.tensor([0 if piece == SEPARATOR else len(piece) for piece in self.spelling])


class ByteTokens(Tokens):
    """A token is a byte of UTF-8."""

    spelling: Sequence[bytes] = tuple(bytes([i]) for i in range(256))
    dtype = torch.uint8
    state: Mapping[str, Any] = {}

    def encode(self, documents: Iterable[bytes]) -> Tensor:
        """The bytes themselves, uint8."""
        stream = bytearray()
        for document in documents:
            stream += document + SEPARATOR
        return torch.frombuffer(stream, dtype=torch.uint8) if stream else torch.zeros(0, dtype=torch.uint8)

    def encode_text(self, text: str) -> Tensor:
        """The text's bytes, int64."""
        return torch.tensor(list(text.encode("utf-8", errors="replace")), dtype=torch.int64)


class PairTokens(Tokens):
    """Byte pairs, merged as often as the vocabulary allows, most frequent first.

    *Source*: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units" (2016,
    arXiv:1508.07909), algorithm 1, on bytes as in GPT-2; learnt and applied by the ``tokenizers`` library.

    Args:
        json: the learnt tokenizer, as the library writes it.

    Raises:
        DataError: ``json`` does not hold a byte-level tokenizer.
    """

    dtype = torch.int32

    def __init__(self, json: str) -> None:
        from tokenizers import Tokenizer  # loaded for byte pairs alone

        try:
            self._tokenizer = Tokenizer.from_str(json)
            letters = [self._tokenizer.id_to_token(i) or "" for i in range(self._tokenizer.get_vocab_size())]
            byte_of = _byte_of_letter()
            self.spelling = [bytes(byte_of[letter] for letter in piece) for piece in letters]
            self.state = {"bpe": self._tokenizer.to_str()}
            self._separator = self.spelling.index(SEPARATOR)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"not a byte-pair tokenizer that moekit wrote: {type(error).__name__}: {error}") from error

    @classmethod
    def learn(cls, documents: Iterable[bytes], vocab: int) -> PairTokens:
        """Learns up to ``vocab`` tokens (256 bytes and merges); fewer when the text has no more pairs to merge."""
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator((chunk for d in documents for chunk in chunks(d)), trainer)
        return cls(tokenizer.to_str())

    def encode(self, documents: Iterable[bytes]) -> Tensor:
        """Merged bytes, int32."""
        streams = [torch.zeros(0, dtype=torch.int32)]
        separator = torch.tensor([self._separator], dtype=torch.int32)
        for document in documents:
            parts = self._tokenizer.encode_batch_fast(list(chunks(document)), add_special_tokens=False)
            streams += [*(torch.tensor(part.ids, dtype=torch.int32) for part in parts), separator]
        return torch.cat(streams)

    def encode_text(self, text: str) -> Tensor:
        """Merged bytes, int64."""
        valid = text.encode("utf-8", errors="replace").decode("utf-8")
        return torch.tensor(self._tokenizer.encode(valid, add_special_tokens=False).ids, dtype=torch.int64)


def from_state(state: Mapping[str, Any], kind: str) -> Tokens | None:
    """The tokens, ``bytes`` or ``bpe``, that ``state`` holds; None for byte pairs that are not learnt yet.

    Raises:
        DataError: the state is of the other kind, or damaged.
    """
    if kind == "bytes":
        if "bpe" in state:
            raise DataError("the stored state holds byte pairs, but the spec says tokens=bytes")
        return ByteTokens()
    return PairTokens(state["bpe"]) if "bpe" in state else None


def chunks(document: bytes, size: int = 1 << 16) -> Iterator[str]:
    """A UTF-8 document in chunks of about ``size`` bytes that end with a line, so that memory stays bounded."""
    start = 0
    while start < len(document):
        end = document.find(b"\n", start + size) + 1 or len(document)
        yield document[start:end].decode("utf-8")
        start = end


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for.

    The library writes printable Latin-1 bytes as themselves, and the other bytes, in order, as letters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}
