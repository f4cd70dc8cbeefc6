"""Memory of one forward and backward pass: what is saved in between, exactly, and the peak on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a forward pass keeps for backward.

    Attributes:
        bytes: of all storages that are kept, each counted once, without those of the weights.
        tensors: shape, dtype and bytes of each of these storages, by the first tensor that was seen in it.
    """

    bytes: int
    tensors: tuple[tuple[tuple[int, ...], str, int], ...]


def saved_for_backward(forward: Callable[[], object], weights: Sequence[Tensor] = ()) -> Saved:
    """Runs a forward pass and adds up what autograd saves.

    A storage is counted whole, as it stays in memory whole, and once, however many views of it are saved. What a
    function keeps by other means than ``save_for_backward`` is not seen.

    Args:
        forward: the pass.
        weights: tensors whose storages do not count: they lie in memory anyway.
    """
    held: dict[int, tuple[Tensor, int]] = {}  # tensors are held, so that no address is given out a second time
    skip = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in skip:
            held.setdefault(storage.data_ptr(), (tensor, storage.nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    tensors = tuple((tuple(t.shape), str(t.dtype).removeprefix("torch."), size) for t, size in held.values())
    del output
    return Saved(bytes=sum(size for *_, size in tensors), tensors=tensors)


def peak_on_cuda(step: Callable[[], object]) -> int:
    """Bytes that a pass takes at most on the GPU, over what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    torch.cuda.synchronize()
    del result
    return int(torch.cuda.max_memory_allocated()) - before
