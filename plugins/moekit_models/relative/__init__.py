"""Attention with relative position biases: a learned number for each head and distance between positions.

Short distances have a number each. Longer ones share buckets that widen with the distance, up to ``max_distance``; the
last bucket holds all beyond it. In an encoder, half of the buckets are for earlier positions, half for later ones.

A table starts with a variance of ``init_scale`` over the mean of buckets and heads, as in T5X (flaxformer ``moe.gin``:
variance scaling by the mean fan; there the distribution is uniform).

T5 has ``shared: true`` and ``scale: 1``: one table for all layers of a stack, and dot products as they are, since there
the initial weights of queries are smaller instead.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (T5, section 2.1; arXiv 1910.10683). GLaM and
Switch Transformer have it too.
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import AttentionSpec


class Relative(AttentionSpec):
    """Options of attention with relative position biases."""

    caches: ClassVar[bool] = True
    takes_documents: ClassVar[bool] = True

    heads: int = option(help="heads", ge=1)
    head_dim: int = option(help="width of a head; heads times this need not be the tokens' width", ge=1)
    buckets: int = option(32, "numbers that a head learns, one for each bucket of distances", ge=4)
    max_distance: int = option(128, "positions this far apart or farther share the last bucket", ge=2, le=1 << 31)
    scale: float | None = option(None, "factor of dot products; default: 1/sqrt(head_dim), T5: 1", gt=0)

    shared: bool = option(False, "one table for all layers of a stack of the encoder-decoder, as in T5")

    def check(self) -> Iterable[str]:
        """The number of buckets can be halved twice, and long distances have some."""
        if self.buckets % 4:
            yield f"buckets={self.buckets} must be a multiple of 4: an encoder halves them by side, then by distance"
        if self.max_distance <= self.buckets // 2:
            yield (
                f"max_distance={self.max_distance} must be more than {self.buckets // 2}: "
                f"that many of the {self.buckets} buckets hold one distance each"
            )
