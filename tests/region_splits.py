"""Random splits of a tensor into regions, for tests of shards and of checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Dims = tuple[int, ...]
Split = list[tuple[Dims, Dims]]


@st.composite
def splits(draw: Any, shape: Dims) -> Split:
    """Regions that tile a tensor: cut in two at random places, in random order."""
    regions: Split = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if math.prod(shape) else 0):
        i = draw(st.integers(0, len(regions) - 1))
        offset, sizes = regions[i]
        d = draw(st.integers(0, max(0, len(shape) - 1)))
        if not shape or sizes[d] < 2:
            continue
        at = draw(st.integers(1, sizes[d] - 1))
        regions[i] = (offset, (*sizes[:d], at, *sizes[d + 1 :]))
        regions.append(((*offset[:d], offset[d] + at, *offset[d + 1 :]), (*sizes[:d], sizes[d] - at, *sizes[d + 1 :])))
    return draw(st.permutations(regions))  # type: ignore[no-any-return]


@st.composite
def two_splits(draw: Any) -> tuple[Dims, Split, Split]:
    """A shape of up to four dimensions, some perhaps empty, and two splits of it."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    return shape, draw(splits(shape)), draw(splits(shape))


def numbered(shape: Dims) -> Tensor:
    """A tensor whose elements all differ."""
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
