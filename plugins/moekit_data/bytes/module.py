"""Bytes as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from moekit.contracts import Tokenizer
from moekit.errors import DataError
from moekit_data.bytes import Bytes

END = 0


@final
class ByteTokenizer(Tokenizer):
    """A token is a byte of UTF-8. Byte 0, which text cannot contain, ends a document."""

    def __init__(self, spec: Bytes) -> None:
        self.spec = spec

    @property
    def spelling(self) -> Sequence[bytes]:
        """Each byte but 0."""
        return SPELLING

    @property
    def end(self) -> int | None:
        """Byte 0."""
        return END

    def encode(self, text: str) -> Tensor:
        """The text's bytes, int64."""
        return torch.tensor(list(text.encode("utf-8", errors="replace")), dtype=torch.int64)

    def stream(self, documents: Iterable[bytes]) -> Tensor:
        """The bytes themselves, uint8."""
        stream = bytearray()
        for document in documents:
            stream += document + bytes([END])
        return torch.frombuffer(stream, dtype=torch.uint8) if stream else torch.zeros(0, dtype=torch.uint8)

    def describe(self) -> str:
        """``bytes``."""
        return "bytes"

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing was learnt.

        Raises:
            DataError: something was, by another kind of tokenizer.
        """
        if state:
            raise DataError("the stored state is of learnt tokens, but the tokenizer is bytes")


SPELLING = tuple(bytes([i]) if i != END else b"" for i in range(256))
