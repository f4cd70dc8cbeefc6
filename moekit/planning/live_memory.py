"""What lives while code runs: storages counted from the operator that makes them to the moment they are freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from moekit.compat import TorchDispatchMode, storage_id, tree_iter


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes, of real tensors and of those without storage alike. What an operator needs within it is not seen.

    Args:
        outside: tensors that are there anyway and do not count.
        banks: those of them whose copies in another dtype, as autocast makes them, do not count either.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once, beside what ``skips`` leaves out.
        skips: says of a new tensor that it does not count.
        copies: bytes of the copies of banks that live, by the number of their storage.
    """

    def __init__(self, outside: Iterable[Tensor], banks: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.skips: Callable[[Tensor], bool] = lambda tensor: False
        self._outside = [tensor.untyped_storage() for tensor in outside]  # held, so that no number is given out twice
        self._seen: dict[int, Any] = {storage_id(storage): None for storage in self._outside}
        self._banks = {storage_id(bank.untyped_storage()) for bank in banks}
        self.copies: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, and looks at what came out."""
        out = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and storage_id(args[0].untyped_storage()) in self._banks
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._take(tensor, copied)
        return out

    def _take(self, tensor: Tensor, copied: bool) -> None:
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
        self._seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))

    def _drop(self, key: int, size: int) -> None:
        self.now -= size
        self._seen.pop(key, None)
        self.copies.pop(key, None)


class Kept:
    """Adds up what a forward pass keeps for backward, each storage whole and once, by where it was kept first.

    Args:
        outside: tensors that are there anyway: weights.
        copies: storages that are added up by themselves (``Live.copies``).

    Attributes:
        place: where the pass is; to be set by whoever knows.
        by_place: bytes by place.
        copied: bytes of ``copies`` that were kept.
    """

    def __init__(self, outside: Iterable[Tensor], copies: Mapping[int, int]) -> None:
        self.place = ""
        self.by_place: dict[str, int] = {}
        self.copied = 0
        self._copies = copies
        self._outside = {storage_id(tensor.untyped_storage()) for tensor in outside}
        self._held: dict[int, Tensor] = {}  # held, so that no number is given out twice

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """The context to run the pass in."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def forget(self) -> None:
        """Lets go of the tensors; the sums stay. Backward then frees them as it would without anyone looking."""
        self._held.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage_id(storage)
        if key not in self._outside and key not in self._held:
            self._held[key] = tensor
            if key in self._copies:
                self.copied += storage.nbytes()
                return tensor
            self.by_place[self.place] = self.by_place.get(self.place, 0) + storage.nbytes()
        return tensor
