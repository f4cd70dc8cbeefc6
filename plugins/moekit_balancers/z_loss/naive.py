"""The router z-loss as a loop over tokens and experts, from the equation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def loss(logits_TE: Tensor, *, valid: Sequence[bool] | None = None) -> Tensor:
    """``(1/T) sum_t (log sum_e exp z_te)²`` over valid tokens.

    Args:
        logits_TE: the router's logits.
        valid: False for padding.
    """
    total, num_tokens = logits_TE.new_zeros(()), 0
    for t, z_E in enumerate(logits_TE):
        if valid is not None and not valid[t]:
            continue
        largest = max(z_E.tolist())
        odds = [torch.exp(z - largest) for z in z_E]
        total = total + (largest + torch.log(sum(odds[1:], odds[0]))) ** 2
        num_tokens += 1
    return total / max(num_tokens, 1)
