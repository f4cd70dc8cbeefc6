"""Tokens of text, then the end of a target, then sentinels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from moekit.contracts import Tokenizer

SENTINEL = re.compile(r"<(\d{1,9})>")


@final
class SentinelTokenizer(Tokenizer):
    """The tokens of another tokenizer, with an end of its own and sentinels, which are written ``<0>``, ``<1>`` …

    Args:
        text: the other tokenizer.
        end: the end; sentinels count up from the next number.
        sentinels: how many of them ``encode`` reads.
        vocab: how many tokens there are.
    """

    def __init__(self, text: Tokenizer, *, end: int, sentinels: int, vocab: int) -> None:
        self.text = text
        self._end = end
        self.sentinels = sentinels
        self.vocab = vocab

    @property
    def spelling(self) -> Sequence[bytes]:
        """As in the text; the end and sentinels spell nothing."""
        known = self.text.spelling
        return [*known, *[b""] * (self.vocab - len(known))] if known else ()

    def num_bytes_V(self) -> Tensor | None:
        """As in the text."""
        return None if self.text.num_bytes_V() is None else super().num_bytes_V()

    @property
    def end(self) -> int | None:
        """The end of a target."""
        return self._end

    def encode(self, text: str) -> Tensor:
        """Text with sentinels, int64 ``[S]``: ``The <0> jumps over <1>.`` has two."""
        out: list[Tensor] = []
        at = 0
        for match in SENTINEL.finditer(text):
            if int(match[1]) < self.sentinels:
                out += [self.text.encode(text[at : match.start()]), torch.tensor([self._end + 1 + int(match[1])])]
                at = match.end()
        return torch.cat([*out, self.text.encode(text[at:])])

    def decode(self, ids: Tensor) -> str:
        """Tokens up to the end as text, sentinels as ``<0>``, ``<1>`` and so on."""
        parts: list[str] = []
        run: list[int] = []
        for token in [*ids.tolist(), self._end]:
            if token < self._end:
                run.append(token)
                continue
            parts.append(self.text.decode(torch.tensor(run, dtype=torch.int64)) if run else "")
            run = []
            if token == self._end:
                break
            parts.append(f"<{token - self._end - 1}>")
        return "".join(parts)

    def example(self) -> str:
        """A text with two sentinels, if there are any."""
        return "The <0> of the <1>." if self.sentinels else self.text.example()

    def describe(self) -> str:
        """The description of the text's."""
        return self.text.describe()

    def state(self) -> dict[str, Any]:
        """The state of the text's."""
        return self.text.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state of the text's."""
        self.text.load_state(state)
