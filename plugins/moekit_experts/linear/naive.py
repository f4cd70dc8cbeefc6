"""Experts of one layer, row by row: the reference implementation."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_linear(
    x_ND: Tensor, expert_N: Tensor, w_EOD: Tensor, b_EO: Tensor | None = None, *, logistic: bool = False
) -> Tensor:
    """``y_NO``: row n through expert ``expert_N[n]``; 0 where that is E (the row belongs to no expert)."""
    E, out_dim = w_EOD.shape[:2]
    rows = []
    for x, e in zip(x_ND, expert_N.tolist(), strict=True):
        if e == E:
            rows.append(x.new_zeros(out_dim))
            continue
        y = w_EOD[e] @ x
        if b_EO is not None:
            y = y + b_EO[e]
        rows.append(1 / (1 + torch.exp(-y)) if logistic else y)
    return torch.stack(rows) if rows else x_ND.new_zeros(0, out_dim)
