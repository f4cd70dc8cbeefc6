"""Scratch buffers that each thread keeps between passes: allocating memory costs more than computing a small layer.

Their content does not outlive a pass, so calls, models and backward passes cannot interfere.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_KEPT = 1 << 22
"""The most elements that a thread keeps, per dtype; a pass that needs more allocates them and frees them."""

UNIT = 16
"""Each buffer begins at a multiple of this many elements, aligned for vector instructions."""

GAP = 17 * UNIT
"""Elements between two buffers. Without a gap, rows of several buffers have equal offsets within 4 KiB pages, and the
processor mistakes reads for reads of what was just written (4K aliasing): 6 % of a small layer's time."""


class _Kept(threading.local):
    def __init__(self) -> None:
        self.flat: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def buffers(rows: int, widths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """An uninitialised CPU buffer ``[rows, width]`` for each width.

    The calling thread may use them until its next call, which returns the same memory.
    """
    sizes = [math.ceil(rows * width / UNIT) * UNIT + GAP for width in widths]
    flat = _flat(sum(sizes), dtype)
    return [part[: rows * width].view(rows, width) for part, width in zip(flat.split(sizes), widths, strict=True)]  # type: ignore[no-untyped-call]


def _flat(numel: int, dtype: torch.dtype) -> Tensor:
    found = _kept.flat.get(dtype)
    if found is None or found.numel() < numel:
        with torch.inference_mode(False):  # an inference tensor could not be written to outside of inference mode
            found = torch.empty(numel, dtype=dtype)
        if numel <= MOST_KEPT:
            _kept.flat[dtype] = found
    return found[:numel]
