"""Sums with their denominators, over micro-batches and ranks, so that every token weighs alike in what is logged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.distributed import several_ranks


class Meter:
    """Adds up (sum, denominator) pairs by name."""

    def __init__(self) -> None:
        self._pairs: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Adds 0-d sums and their denominators. Nothing is copied to the host."""
        for name, (total, count) in sums.items():
            # MPS has no float64.
            dtype = torch.float32 if total.device.type == "mps" else torch.float64
            pair = torch.stack([total.detach().to(dtype), count.detach().to(dtype)])
            self._pairs[name] = self._pairs[name] + pair if name in self._pairs else pair

    def take(self) -> dict[str, Tensor]:
        """``[sum, denominator]`` by name, over all ranks (one all-reduce), and starts again at zero."""
        pairs, self._pairs = self._pairs, {}
        if pairs and several_ranks():
            flat = torch.stack(list(pairs.values()))
            dist.all_reduce(flat)
            pairs = dict(zip(pairs, flat.unbind(), strict=True))
        return pairs


def ratios(pairs: Mapping[str, Tensor], prefix: str) -> dict[str, float]:
    """Each sum over its denominator, as numbers on the host (one copy); NaN where the denominator is 0."""
    if not pairs:
        return {}
    total, count = torch.stack(list(pairs.values())).unbind(1)
    return {prefix + name: value for name, value in zip(pairs, (total / count).tolist(), strict=True)}
