"""Tensors put together again from the pieces that ranks hold, on the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.distributed import is_distributed
from moekit.shards.shard import TensorShard, slices_of


def gather(boxes: Mapping[str, TensorShard]) -> dict[str, Tensor] | None:
    """Whole tensors by name, on the CPU of rank 0; None on other ranks. One tensor after the other.

    Collective: every rank has the same names, in the same order (``sharding.shards_of``, ``tensors_of``).

    Args:
        boxes: what this process holds of each tensor.
    """
    if not is_distributed():
        return {name: box.tensor.cpu() for name, box in boxes.items()}
    first = dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    for name, box in boxes.items():
        pieces: list[Any] | None = [None] * dist.get_world_size() if first else None
        mine = box.tensor.numel() and (first or box.sizes != box.global_shape)  # what is whole, rank 0 has itself
        dist.gather_object((box.offset, box.tensor.detach().cpu().clone()) if mine else None, pieces)
        if pieces is not None:
            whole[name] = torch.empty(box.global_shape, dtype=box.tensor.dtype)
            for piece in pieces:
                if piece is not None:
                    offset, tensor = piece
                    whole[name][slices_of(offset, tuple(tensor.shape))] = tensor
    return whole if first else None
