"""What is done with a segment, in this process or in another: its texts are listed, then tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moekit.errors import DataError
from moekit_data.corpus import truncate
from moekit_data.text_files.faults import Reading
from moekit_data.text_files.files import Segment
from moekit_data.text_files.reading import read

if TYPE_CHECKING:  # a process that only lists texts starts without torch
    from moekit.contracts import Tokenizer

SKIP, TRAIN, VALIDATION, BOTH = range(4)
"""What happens to a text. BOTH: its end validates, the rest trains."""
ROW = np.dtype([("digest", "<u8", 2), ("size", "<i8"), ("domain", "<i4")])
"""One text: the start of its checksum, its bytes (0 for blank text), and the number of its domain's name."""


class Job(Protocol):
    """Work that any process can do."""

    def run(self, tokenizer: Tokenizer | None) -> Any:
        """Does it; the result can be pickled."""


class Use(NamedTuple):
    """A tokenizer, by what it is built of."""

    kind: Callable[[Any], Tokenizer]
    spec: Any
    state: Any


class Listed(NamedTuple):
    """The texts of a segment: names of domains, and the rows, of type ``ROW``, that number them."""

    domains: list[str]
    rows: NDArray[Any]


@dataclass(frozen=True)
class ListTexts:
    """Reads a segment and lists its texts."""

    segment: Segment
    how: Reading

    def run(self, tokenizer: Tokenizer | None) -> Listed:
        """The checksum, size and domain of every text; the tokenizer is not used.

        Raises:
            DataError: the segment cannot be used.
        """
        domains: dict[str, int] = {}
        rows: list[tuple[tuple[int, int], int, int]] = []
        for name, text in read(self.segment, self.how):
            digest = hashlib.sha256(text).digest()
            pair = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
            size = 0 if text.isspace() else len(text)
            rows.append((pair, size, domains.setdefault(name, len(domains))))
        return Listed(list(domains), np.array(rows, dtype=ROW))


class Run(NamedTuple):
    """Tokens that follow each other in the result of ``TokeniseTexts``."""

    domain: str
    split: int
    tokens: int


@dataclass(frozen=True)
class TokeniseTexts:
    """Reads a segment again and writes its tokens to a file.

    Attributes:
        segment, how: as for ``ListTexts``.
        fate_N: what happens to each text.
        ends_N: whether a document ends with this text, so that the tokenizer's end follows.
        share: of a text of both splits, from its end, that validates.
        dtype: of the tokens.
        out: the file.
    """

    segment: Segment
    how: Reading
    fate_N: NDArray[np.int8]
    ends_N: NDArray[np.bool_]
    share: float
    dtype: str
    out: Path

    def run(self, tokenizer: Tokenizer | None) -> list[Run]:
        """What was written, in order.

        Raises:
            DataError: the file has changed since its texts were listed, or a token is too large for ``vocab``.
            OSError: the result cannot be written.
        """
        assert tokenizer is not None
        runs: list[Run] = []
        seen = 0
        with self.out.open("wb") as file:
            for number, (domain, text) in enumerate(read(self.segment, self.how)):
                seen = number + 1
                if seen > len(self.fate_N):
                    break
                fate = self.fate_N[number]
                parts = [(int(fate), text, bool(self.ends_N[number]))] if fate != SKIP else []
                if fate == BOTH:
                    head, tail = cut(text, self.share)
                    parts = [(TRAIN, head, True), (VALIDATION, tail, True)]
                for split, part, ends in parts:
                    tokens = self._tokens(tokenizer, part, ends)
                    file.write(tokens.tobytes())
                    last = runs.pop() if runs and runs[-1][:2] == (domain, split) else Run(domain, split, 0)
                    runs.append(last._replace(tokens=last.tokens + len(tokens)))
        if seen != len(self.fate_N):
            raise DataError(f"{self.segment.path} has changed while it was read\n  start again once it is complete")
        return runs

    def _tokens(self, tokenizer: Tokenizer, text: bytes, ends: bool) -> NDArray[Any]:
        stream = tokenizer.stream([text])
        if not ends and tokenizer.end is not None:
            stream = stream[:-1]
        largest = np.iinfo(self.dtype).max
        if len(stream) and int(stream.max()) > largest:
            raise DataError(f"{type(tokenizer).__name__} made a token beyond {largest:,}, and its vocab is smaller")
        return stream.numpy().astype(self.dtype)


def cut(text: bytes, share: float) -> tuple[bytes, bytes]:
    """A text in two, of which the second has that share of its bytes."""
    head = truncate(text, round(len(text) * (1 - share)))
    return head, text[len(head) :]
