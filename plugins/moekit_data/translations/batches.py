"""Pairs as tokens, and batches of pairs of like length, drawn by language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.contracts import Batch
from moekit_data.padding import MULTIPLE, side_by_side
from moekit_data.translations.pairs import Pair
from moekit_data.translations.vocabulary import Vocabulary

BATCHES = 8
"""Batches' worth of pairs that are drawn for one."""


class TokenPair(NamedTuple):
    """A pair in numbers.

    Attributes:
        source: int64 ``[S]``, the tag and the source's tokens.
        target: int64 ``[S]``, the target's tokens, without an end.
        domain: the language's place in the vocabulary.
    """

    source: Tensor
    target: Tensor
    domain: int


def encode(pairs: Iterable[Pair], vocabulary: Vocabulary) -> list[TokenPair]:
    """Every pair in numbers, in the same order."""
    texts: dict[str, Tensor] = {}  # a source comes once for each language
    out = []
    for pair in pairs:
        if pair.source not in texts:
            texts[pair.source] = vocabulary.tokens.encode_text(pair.source)
        source = torch.cat([torch.tensor([vocabulary.tag(pair.language)]), texts[pair.source]])
        target = vocabulary.tokens.encode_text(pair.target)
        out.append(TokenPair(source, target, vocabulary.languages.index(pair.language)))
    return out


def width(pair: TokenPair) -> int:
    """The length that a pair takes in a batch, on its longer side."""
    longest = max(len(pair.source), len(pair.target) + 1)
    return longest + -longest % MULTIPLE


def slices(widths: Sequence[int], batch_tokens: int) -> list[range]:
    """Cuts rows, narrow ones first, into batches of at most so many tokens on either side; of one row at least."""
    out: list[range] = []
    start = 0
    for i, wide in enumerate(widths):
        if i > start and (i + 1 - start) * wide > batch_tokens:
            out.append(range(start, i))
            start = i
    return [*out, range(start, len(widths))]


class Bucket:
    """Training pairs, drawn in batches of like length, so that little of a batch is padding.

    Several batches' worth of pairs are drawn, each by language and then evenly among the language's. Sorted by length
    they are cut into batches of about equally many tokens, of which one is taken by lot. So each pair is as likely as
    if it were drawn by itself, and each step sees about as many tokens.

    Args:
        pairs: all of them.
        num_languages: domains are below this.
        batch_tokens: tokens in a batch on either side, padding included, at most (one pair at least).
        temperature: T of ``p ~ n^(1/T)``; languages without pairs are never drawn.
    """

    def __init__(
        self, pairs: Iterable[TokenPair], num_languages: int, *, batch_tokens: int, temperature: float
    ) -> None:
        self._pairs = sorted(pairs, key=lambda pair: pair.domain)
        self._width = torch.tensor([width(pair) for pair in self._pairs])
        self._size = torch.zeros(num_languages, dtype=torch.int64)
        for pair in self._pairs:
            self._size[pair.domain] += 1
        self._first = self._size.cumsum(0) - self._size
        self._probs = self._size.double() ** (1 / temperature)
        self._batch_tokens = batch_tokens
        self._pool = BATCHES * -(-batch_tokens // int(self._width.double().mean()))

    def draw(self, generator: torch.Generator) -> list[TokenPair]:
        """The pairs of one batch, short ones first."""
        domain = torch.multinomial(self._probs, self._pool, replacement=True, generator=generator)
        place = torch.rand(self._pool, dtype=torch.float64, generator=generator) * self._size[domain]
        index = self._first[domain] + torch.minimum(place.long(), self._size[domain] - 1)
        widths, order = self._width[index].sort(stable=True)
        batches = slices(widths.tolist(), self._batch_tokens)
        chosen = batches[int(torch.randint(len(batches), (), generator=generator))]
        return [self._pairs[i] for i in index[order[chosen.start : chosen.stop]].tolist()]


def collate(pairs: Sequence[TokenPair], vocabulary: Vocabulary, num_bytes_V: Tensor) -> Batch:
    """A batch: the decoder reads the end and the target, and is to say the target and the end.

    Args:
        pairs: one for each row.
        vocabulary: gives the end.
        num_bytes_V: bytes of text that each token spells.
    """
    return side_by_side(
        [pair.source for pair in pairs],
        [pair.target for pair in pairs],
        end=vocabulary.end,
        domain=torch.tensor([pair.domain for pair in pairs]),
        num_bytes_V=num_bytes_V,
    )
