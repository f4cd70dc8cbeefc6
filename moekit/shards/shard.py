"""Boxes: rectangular pieces of tensors that no process need hold whole.

A checkpoint knows a tensor as boxes that tile it. Which process wrote which box is of no account when it is read: any
other box of the same tensor is put together from those that meet it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from moekit.compat import shard_bounds

Dims = tuple[int, ...]
"""A point of a tensor, or the sizes of a box: a number for each dimension."""


@dataclass(frozen=True)
class TensorShard:
    """A piece of a tensor, held by this process.

    Args:
        name: of the whole tensor.
        global_shape: of the whole tensor.
        offset: where the piece begins in it.
        tensor: the piece; it may be empty.

    Raises:
        ValueError: the piece does not lie inside the whole.
    """

    name: str
    global_shape: Dims
    offset: Dims
    tensor: Tensor

    def __post_init__(self) -> None:
        sizes = tuple(self.tensor.shape)
        same = len(sizes) == len(self.offset) == len(self.global_shape)
        if not same or any(o < 0 or o + n > g for o, n, g in zip(self.offset, sizes, self.global_shape, strict=True)):
            raise ValueError(f"{self.name}: a box of {sizes} at {self.offset} is not inside {self.global_shape}")

    @property
    def sizes(self) -> Dims:
        """The shape of the piece."""
        return tuple(self.tensor.shape)


def unsharded(name: str, tensor: Tensor) -> TensorShard:
    """A tensor that this process holds whole."""
    return TensorShard(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)


def shard_of_dtensor(name: str, tensor: DTensor) -> TensorShard:
    """This process's piece of a ``DTensor``. Pieces that several processes hold are told apart by nothing.

    The mesh must be all there is to know: a plain tensor of *different* values on each rank, such as the experts that a
    rank keeps, is no ``DTensor`` over them, and needs a ``Box`` of its own.
    """
    sizes, offset = shard_bounds(tensor)
    local = tensor.to_local()
    if tuple(local.shape) != sizes:
        raise ValueError(f"{name}: the local part is {tuple(local.shape)}, its placement says {sizes}")
    return TensorShard(name, tuple(tensor.shape), offset if local.numel() else (0,) * local.dim(), local)


def local_shard(name: str, tensor: Tensor) -> TensorShard:
    """What this process holds of a tensor: its piece of a ``DTensor``, all of any other."""
    return shard_of_dtensor(name, tensor) if isinstance(tensor, DTensor) else unsharded(name, tensor)


def intersection(offset: Dims, sizes: Dims, other_offset: Dims, other_sizes: Dims) -> tuple[Dims, Dims] | None:
    """The offset and sizes of what two boxes have in common; None where that is nothing."""
    starts = tuple(map(max, offset, other_offset))
    ends = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, sizes, other_offset, other_sizes, strict=True))
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return None
    return starts, tuple(end - start for start, end in zip(starts, ends, strict=True))


def slices_of(offset: Dims, sizes: Dims, within: Dims = ()) -> tuple[slice, ...]:
    """The slices of a box; seen from a box that begins at ``within``."""
    within = within or (0,) * len(offset)
    return tuple(slice(o - w, o - w + n) for o, n, w in zip(offset, sizes, within, strict=True))


def tiling_error(global_shape: Dims, boxes: Sequence[tuple[Dims, Dims]]) -> str:
    """What keeps boxes (offset, sizes) from tiling a tensor: each element in one of them; empty where they do."""
    for i, (offset, sizes) in enumerate(boxes):
        for other_offset, other_sizes in boxes[:i]:
            if common := intersection(offset, sizes, other_offset, other_sizes):
                return f"two pieces hold {list(common[1])} elements at {list(common[0])}"
    held, all_ = sum(math.prod(sizes) for _, sizes in boxes), math.prod(global_shape)
    return "" if held == all_ else f"the pieces hold {held} of {all_} elements"


def fill_shards(boxes: Sequence[TensorShard], read: Callable[[str, Dims, Dims], Tensor]) -> None:
    """Fills the boxes' tensors, in place, with what ``read(name, offset, sizes)`` gives."""
    with torch.no_grad():
        for box in boxes:
            if box.tensor.numel():
                box.tensor.copy_(read(box.name, box.offset, box.sizes))
