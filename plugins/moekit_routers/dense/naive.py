"""The dense gate as loops over tokens and experts, from the equation."""

from __future__ import annotations

import torch
from torch import Tensor


def gates(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, valid_T: Tensor | None = None) -> Tensor:
    """``gate_TE``: ``p_te = exp(z_te) / sum_j exp(z_tj)`` with ``z_te = w_e . x_t + b_e``; 0 for padding."""
    rows = []
    for t in range(x_TD.shape[0]):
        z = []
        for e in range(weight_ED.shape[0]):
            z_e = (weight_ED[e] * x_TD[t]).sum()
            z.append(z_e if bias_E is None else z_e + bias_E[e])
        largest = max(z_e.item() for z_e in z)
        odds = [torch.exp(z_e - largest) for z_e in z]
        total = sum(odds[1:], odds[0])
        valid = valid_T is None or bool(valid_T[t])
        rows.append(torch.stack([odd / total if valid else 0 * odd for odd in odds]))
    return torch.stack(rows) if rows else x_TD.new_zeros(0, weight_ED.shape[0])
