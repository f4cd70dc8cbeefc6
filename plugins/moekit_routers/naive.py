"""What the reference implementations of routers share: a softmax and a top-k in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def softmax(z: Sequence[Tensor]) -> list[Tensor]:
    """``exp(z_e) / sum_j exp(z_j)``."""
    largest = max(z_e.item() for z_e in z)
    odds = [torch.exp(z_e - largest) for z_e in z]
    return [odd / sum(odds[1:], odds[0]) for odd in odds]


def best(keys: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest keys, largest first; the lower index wins a tie."""
    return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]
