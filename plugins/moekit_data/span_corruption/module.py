"""Windows of text from which spans are removed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from moekit.contracts import Batch
from moekit.errors import DataError
from moekit_data.derived import DerivedData, text_of
from moekit_data.padding import side_by_side
from moekit_data.span_corruption import SpanCorruption


@final
class SpanCorruptionData(DerivedData):
    """Source: the window with each span replaced by one sentinel. Target: sentinel, span, sentinel, span, the end.

    Sentinels count up from ``end + 1``. All placements of that many tokens in that many spans which do not touch are
    equally likely. (T5's code always ends a window with a span; the paper does not say so.)
    """

    def __init__(self, spec: SpanCorruption) -> None:
        super().__init__(spec)
        self.spec: SpanCorruption = spec

    def pairs(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Removes spans from every window.

        Raises:
            DataError: a window is so long that it has more spans than there are sentinels.
        """
        made = [self.corrupt(window_S, generator) for window_S in text_of(batch)]
        sources, targets = [source for source, _ in made], [target for _, target in made]
        return side_by_side(
            sources, targets, end=self.end, domain=batch.domain, num_bytes_V=self.tokenizer.num_bytes_V()
        )

    def corrupt(self, window_S: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Source and target of one window, both int64, the target without the end.

        Raises:
            DataError: the window has more spans than there are sentinels.
        """
        num_cut, num_spans = self.spec.cuts(len(window_S))
        if num_spans > self.spec.sentinels:
            raise DataError(
                f"a window of {len(window_S)} tokens has {num_spans} spans, and there are {self.spec.sentinels} "
                "sentinels\n  give data.sentinels as many, or a larger data.mean_span"
            )
        if not num_spans:
            return window_S, window_S
        spans = parts(num_cut, num_spans, generator)
        # tokens kept before, between and after the spans; at least one between two spans
        kept = parts(len(window_S) - num_cut + 2, num_spans + 1, generator)
        kept[0], kept[-1] = kept[0] - 1, kept[-1] - 1
        pieces = torch.split(window_S, [n for both in zip(kept, [*spans, 0], strict=True) for n in both])
        marks = torch.split(torch.arange(self.end + 1, self.end + 1 + num_spans), 1)
        source = [piece for both in zip(pieces[:-2:2], marks, strict=True) for piece in both]
        target = [piece for both in zip(marks, pieces[1:-2:2], strict=True) for piece in both]
        return torch.cat([*source, pieces[-2]]), torch.cat(target)

    def describe(self) -> Mapping[str, str]:
        """The description of the text, and how much is removed."""
        length = int(getattr(self.spec.text, "seq", 0))
        num_cut, num_spans = self.spec.cuts(length)
        share = f"{num_cut} of {length} tokens removed, in {num_spans} spans" if length else f"{self.spec.density:.0%}"
        return {**super().describe(), "corruption": share}


def parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """``count`` positive integers that add up to ``total``; all such lists are equally likely."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [b - a for a, b in itertools.pairwise(edges)]
