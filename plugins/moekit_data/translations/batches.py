"""Pairs as tokens, and batches of pairs of similar length, sampled by language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moekit_data.padding import MULTIPLE
from moekit_data.translations.pairs import Pair
from moekit_data.translations.tags import TaggedTokenizer

BATCHES = 8
"""How many batches' worth of pairs are sampled to make one batch."""


class TokenPair(NamedTuple):
    """A pair as tokens.

    Attributes:
        source: int64 ``[S]``, the tag and the source's tokens.
        target: int64 ``[S]``, the target's tokens, without an end.
        domain: the language's index among the tags.
    """

    source: Tensor
    target: Tensor
    domain: int


def encode(pairs: Iterable[Pair], tokenizer: TaggedTokenizer) -> list[TokenPair]:
    """Every pair as tokens, in the same order."""
    texts: dict[str, Tensor] = {}  # a source occurs once for each language
    out = []
    for pair in pairs:
        if pair.source not in texts:
            texts[pair.source] = tokenizer.text.encode(pair.source)
        source = torch.cat([torch.tensor([tokenizer.tag(pair.language)]), texts[pair.source]])
        target = tokenizer.text.encode(pair.target)
        out.append(TokenPair(source, target, tokenizer.languages.index(pair.language)))
    return out


def width(pair: TokenPair) -> int:
    """The padded length of a pair's longer side."""
    longest = max(len(pair.source), len(pair.target) + 1)
    return longest + -longest % MULTIPLE


def slices(widths: Sequence[int], batch_tokens: int) -> list[range]:
    """Splits rows, narrow ones first, into batches of at most ``batch_tokens`` tokens a side, but at least one row."""
    out: list[range] = []
    start = 0
    for i, wide in enumerate(widths):
        if i > start and (i + 1 - start) * wide > batch_tokens:
            out.append(range(start, i))
            start = i
    return [*out, range(start, len(widths))]


class Bucket:
    """Training pairs, sampled in batches of similar length, so that little of a batch is padding.

    To make a batch, several batches' worth of pairs are sampled: the language first, then one of its pairs uniformly.
    Sorted by length, they are split into batches of about equally many tokens, of which one is chosen uniformly. So
    each pair is as likely as if it were sampled alone, and all steps have about as many tokens.

    Args:
        pairs: all of them.
        num_languages: domains are below this.
        batch_tokens: tokens in a batch on either side, padding included, at most (but at least one pair).
        temperature: T of ``p ~ n^(1/T)``; languages without pairs have probability 0.
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
        row = torch.rand(self._pool, dtype=torch.float64, generator=generator) * self._size[domain]
        index = self._first[domain] + torch.minimum(row.long(), self._size[domain] - 1)
        widths, order = self._width[index].sort(stable=True)
        batches = slices(widths.tolist(), self._batch_tokens)
        chosen = batches[int(torch.randint(len(batches), (), generator=generator))]
        return [self._pairs[i] for i in index[order[chosen.start : chosen.stop]].tolist()]
