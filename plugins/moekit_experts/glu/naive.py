"""GLU experts, row by row: the oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_glu(
    x_ND: Tensor, expert_N: Tensor, w_gate_EHD: Tensor, w_up_EHD: Tensor, w_down_EOH: Tensor, activation: str
) -> Tensor:
    """``y_NO``: row n through expert ``expert_N[n]``; 0 where that is E (the row belongs to no expert)."""
    E, out_dim = w_down_EOH.shape[:2]
    rows = []
    for x, e in zip(x_ND, expert_N.tolist(), strict=True):
        if e == E:
            rows.append(x.new_zeros(out_dim))
            continue
        gate, up = w_gate_EHD[e] @ x, w_up_EHD[e] @ x
        sigmoid = 1 / (1 + torch.exp(-gate))
        acted = {
            "sigmoid": sigmoid,
            "silu": gate * sigmoid,
            "gelu": gate * (1 + torch.erf(gate / math.sqrt(2))) / 2,
            "relu": torch.where(gate > 0, gate, 0),
        }[activation]
        rows.append(w_down_EOH[e] @ (acted * up))
    return torch.stack(rows) if rows else x_ND.new_zeros(0, out_dim)
