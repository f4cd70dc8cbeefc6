"""Bytes that autograd saves for backward, on real tensors and on tensors without storage.

A storage is counted whole and once, however many views of it there are: it stays in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from moekit.compat import storage_id


class SavedStorages:
    """Counts what autograd saves for backward, by the place where each storage was saved first.

    What a function keeps by other means than ``save_for_backward`` is not seen.

    Args:
        outside: tensors that exist anyway and do not count, such as weights.
        copies: numbers of storages that are counted apart, such as autocast's copies of weights.

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
