"""Buffers that a walk works in, kept by each thread from one walk to the next: fresh memory costs more than the work of
a small layer. Nothing in them outlives a walk, so neither calls, models nor backward passes can meet in them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_KEPT = 1 << 22
"""Numbers that a thread keeps at most, of each dtype; walks that need more get fresh memory, and give it back."""

UNIT = 16
"""Every buffer begins at a multiple of so many numbers, as vector units like it."""

APART = 17 * UNIT
"""Numbers between two buffers. Without them rows of several would begin at equal places of 4 KiB pages, where a
processor takes a read for one of what it has just written elsewhere, and waits: 6 % of a small layer's time."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.flat: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def buffers(rows: int, widths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """A buffer ``[rows, width]`` for each width, on the CPU, with whatever stands in it.

    They are the calling thread's until it asks again: whoever asks must be done with those of before.

    Args:
        rows: of each.
        widths: one for each buffer.
        dtype: of all.
    """
    sizes = [math.ceil(rows * width / UNIT) * UNIT + APART for width in widths]
    flat = _flat(sum(sizes), dtype)
    return [part[: rows * width].view(rows, width) for part, width in zip(flat.split(sizes), widths, strict=True)]  # type: ignore[no-untyped-call]


def _flat(numel: int, dtype: torch.dtype) -> Tensor:
    found = _kept.flat.get(dtype)
    if found is None or found.numel() < numel:
        with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
            found = torch.empty(numel, dtype=dtype)
        if numel <= MOST_KEPT:
            _kept.flat[dtype] = found
    return found[:numel]
