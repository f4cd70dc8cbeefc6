"""Attention with relative position biases: a learned number a head, by how far apart two positions are.

Short distances have a number each; longer ones share buckets that widen with the distance, up to ``max_distance`` and
all beyond. An encoder's buckets are halved between what comes before and what comes after.

Two things are not as in T5: every layer has a table of its own (T5's layers share the first one's), and dot products
are divided by sqrt(head_dim) (T5 leaves that to how queries are drawn; ``scale: 1`` is its form).

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5, section 2.1; arXiv 1910.10683). GLaM and
Switch Transformer have it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class Relative(AttentionSpec):
    """Options of attention with relative position biases."""

    caches: ClassVar[bool] = True

    heads: int = option(help="heads", ge=1)
    head_dim: int = option(help="width of a head; heads times this need not be the tokens' width", ge=1)
    buckets: int = option(32, "numbers that a head learns, one a bucket of distances", ge=4)
    max_distance: int = option(128, "positions this far apart or farther share the last bucket", ge=2)
    scale: float | None = option(None, "multiplies dot products; 1/sqrt(head_dim) when left out, T5 has 1", gt=0)

    def check(self) -> Iterable[str]:
        """Buckets can be halved twice, and some are left for long distances."""
        if self.buckets % 4:
            yield f"buckets={self.buckets} must be a multiple of 4: an encoder halves them by side, then by distance"
        if self.max_distance <= self.buckets // 2:
            yield (
                f"max_distance={self.max_distance} must be more than {self.buckets // 2}: "
                f"so many of the {self.buckets} buckets hold one distance each"
            )


COMPONENT = Component(
    name="relative",
    spec=Relative,
    target="moekit_models.relative.module:RelativeAttention",
    summary="multi-head attention with a learned bias by distance, in buckets that widen with it",
    paper="Raffel et al. 2020, T5",
)
