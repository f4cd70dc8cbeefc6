"""Bytes of tensors while code runs: those alive at once, and those that autograd saves for backward.

A storage is counted whole and once, however many views of it there are: it stays in memory whole. Both work on real
tensors and on tensors without storage.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moekit.compat import TorchDispatchMode, storage_id, tree_iter


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make, until they are freed. An operator's own workspace is not seen.

    Args:
        outside: tensors that exist anyway and do not count.
        banks: those of them whose copies in another dtype, as autocast makes them, do not count either.

    Attributes:
        now: bytes alive.
        peak: the most bytes alive at once.
        skips: whether a new tensor does not count; set by the caller.
        copies: bytes of the living copies of banks, by the number of their storage.
    """

    def __init__(self, outside: Iterable[Tensor], banks: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.skips: Callable[[Tensor], bool] = lambda tensor: False
        self._outside = [tensor.untyped_storage() for tensor in outside]  # held, so that no number is reused
        self._seen: dict[int, Any] = {storage_id(storage): None for storage in self._outside}
        self._banks = {storage_id(bank.untyped_storage()) for bank in banks}
        self.copies: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts its outputs."""
        out = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and storage_id(args[0].untyped_storage()) in self._banks
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, copied)
        return out

    def _add(self, tensor: Tensor, copied: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage_id(storage), storage.nbytes()
        if key in self._seen:
            return
        if copied:
            self.copies[key] = size
        if copied or self.skips(tensor):
            size = 0
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.ref(storage, lambda _: self._remove(key, size))

    def _remove(self, key: int, size: int) -> None:
        self.now -= size
        self._seen.pop(key, None)
        self.copies.pop(key, None)


class SavedStorages:
    """Counts what autograd saves for backward, by the place where each storage was saved first.

    What a function keeps by other means than ``save_for_backward`` is not seen.

    Args:
        outside: tensors that exist anyway and do not count, such as weights.
        copies: storages that are counted apart (``LiveBytes.copies``).

    Attributes:
        place: where the forward pass is; set by the caller.
        by_place: bytes by place.
        copied: bytes of ``copies`` that were saved.
        tensors: the first tensor seen of each storage, by the storage's number; held, so that no number is reused.
    """

    def __init__(self, outside: Iterable[Tensor], copies: Mapping[int, int] | None = None) -> None:
        self.place = ""
        self.by_place: dict[str, int] = {}
        self.copied = 0
        self.tensors: dict[int, Tensor] = {}
        self._copies = {} if copies is None else copies
        self._outside = {storage_id(tensor.untyped_storage()) for tensor in outside}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context to run the forward pass in."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage_id(storage)
        if key not in self._outside and key not in self.tensors:
            self.tensors[key] = tensor
            if key in self._copies:
                self.copied += storage.nbytes()
                return tensor
            self.by_place[self.place] = self.by_place.get(self.place, 0) + storage.nbytes()
        return tensor


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
