"""The dense gate as loops over tokens and experts, from the equation."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit_routers.naive import softmax


def gates(x_TD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None, valid_T: Tensor | None = None) -> Tensor:
    """``gate_TE``: ``p_te = exp(z_te) / sum_j exp(z_tj)`` with ``z_te = w_e . x_t + b_e``; 0 for padding."""
    rows = []
    for t in range(x_TD.shape[0]):
        z = []
        for e in range(weight_ED.shape[0]):
            z_e = (weight_ED[e] * x_TD[t]).sum()
            z.append(z_e if bias_E is None else z_e + bias_E[e])
        valid = valid_T is None or bool(valid_T[t])
        rows.append(torch.stack([p if valid else 0 * p for p in softmax(z)]))
    return torch.stack(rows) if rows else x_TD.new_zeros(0, weight_ED.shape[0])
