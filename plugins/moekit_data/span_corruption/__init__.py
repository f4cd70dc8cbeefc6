"""Span corruption: the model restores spans that were removed from a text.

Source: Raffel et al. 2020, T5 (arXiv 1910.10683, sections 3.1.4 and 3.3.4), which Switch and ST-MoE pre-train with.
"""

from __future__ import annotations

from collections.abc import Iterable

from moekit.spec.fields import option
from moekit_data.specs import DerivedSpec


class SpanCorruption(DerivedSpec):
    """Options of span corruption. In the source a sentinel replaces each span; the target has each sentinel's span."""

    density: float = option(0.15, "share of a window's tokens that is removed", gt=0, lt=1)
    mean_span: float = option(3.0, "mean length of a span, tokens", ge=1)
    sentinels: int = option(63, "how many different sentinels there are: the most spans in a window", ge=1)

    def num_sentinels(self) -> int:
        """As many as the option says."""
        return self.sentinels

    def smallest_vocab(self) -> int:
        """The smallest ``vocab`` with room for the text's tokens, the end and the sentinels."""
        return self.text_vocab() + 1 + self.sentinels

    def check(self) -> Iterable[str]:
        """The vocabulary must have room, and each span a sentinel."""
        yield from super().check()
        if (num_spans := self.cuts(int(getattr(self.text, "seq", 0)))[1]) > self.sentinels:
            yield (
                f"sentinels={self.sentinels} are too few: a window of {getattr(self.text, 'seq', 0)} tokens has "
                f"{num_spans} spans; give as many, or a larger mean_span"
            )

    def cuts(self, length: int) -> tuple[int, int]:
        """How many tokens are removed from a window of ``length``, and in how many spans.

        As in T5's code, both are rounded and at least 1. A window of two or more tokens keeps one, and no two spans
        touch.
        """
        if length < 1:
            return 0, 0
        num_cut = min(max(round(length * self.density), 1), max(length - 1, 1))
        return num_cut, min(max(round(num_cut / self.mean_span), 1), num_cut, length - num_cut + 1)
