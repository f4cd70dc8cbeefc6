"""Options that every text data has: windows, tokens, and how much is kept for validation. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import DataSpec


@dataclass(frozen=True, kw_only=True)
class TextSpec(DataSpec):
    """Base of text data's specs."""

    seq: int = option(256, "tokens in a window", ge=1)
    batch: int = option(16, "windows in a batch", ge=1)
    tokens: Literal["bytes", "bpe"] = option("bytes", "bytes of UTF-8, or byte pairs learnt from the training text")
    vocab: int = option(256, "number of tokens: 256 for bytes, more for byte pairs", ge=256)
    validation: float = option(0.1, "share of the text that is kept for validation, by whole files", gt=0, lt=1)
    validation_windows: int = option(64, "windows per domain in the validation set, at most", ge=1)

    def check(self) -> Iterable[str]:
        """The vocabulary must be of the size that the kind of token makes."""
        if self.tokens == "bytes" and self.vocab != 256:
            yield f"tokens=bytes makes a vocab of 256, not {self.vocab}; set tokens=bpe for a larger one"
        if self.tokens == "bpe" and self.vocab <= 256:
            yield f"tokens=bpe starts from 256 bytes, so vocab={self.vocab} must be more than 256"
