"""What a forward pass saves for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from moekit.saved_memory import SavedStorages


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
    saved = SavedStorages(weights)
    with saved.hooks():
        output = forward()
    tensors = tuple(
        (tuple(t.shape), str(t.dtype).removeprefix("torch."), size)
        for t in saved.tensors.values()
        if (size := t.untyped_storage().nbytes())
    )
    del output
    return Saved(bytes=sum(saved.by_place.values()), tensors=tensors)
