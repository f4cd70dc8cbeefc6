"""What a forward pass saves for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.compat import storage_id


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a forward pass saves for backward.

    Attributes:
        bytes: of all saved storages but the weights'.
        tensors: shape, dtype and bytes of each of these storages; shape and dtype are of the first tensor seen of it.
    """

    bytes: int
    tensors: tuple[tuple[tuple[int, ...], str, int], ...]


def saved_for_backward(forward: Callable[[], object], weights: Iterable[Tensor] = ()) -> Saved:
    """Runs a forward pass and counts what autograd saves, without the storages of ``weights``."""
    outside = {storage_id(weight.untyped_storage()) for weight in weights}
    first: dict[int, Tensor] = {}  # of each storage, by its number; held, so that no number is reused

    def pack(tensor: Tensor) -> Tensor:
        if (key := storage_id(tensor.untyped_storage())) not in outside:
            first.setdefault(key, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in first.items()}
    tensors = tuple(
        (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), sizes[key])
        for key, tensor in first.items()
        if sizes[key]
    )
    del output
    return Saved(bytes=sum(sizes.values()), tensors=tensors)
