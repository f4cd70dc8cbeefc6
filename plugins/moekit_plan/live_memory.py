"""Bytes of the tensors that are alive at once while code runs, with or without storage.

A storage is counted whole and once, however many views of it there are: it stays in memory whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
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
