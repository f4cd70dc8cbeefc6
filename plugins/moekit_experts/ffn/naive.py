"""FFN experts, row by row: the reference implementation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_ffn(
    x_ND: Tensor,
    expert_N: Tensor,
    w_up_EHD: Tensor,
    w_down_EOH: Tensor,
    activation: str,
    b_up_EH: Tensor | None = None,
    b_down_EO: Tensor | None = None,
    keep_NH: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``y_NO``: row n through expert ``expert_N[n]``; 0 where that is E (the row belongs to no expert).

    ``keep_NH`` is False for hidden values that dropout sets to 0; the others are multiplied by 1 / (1 - dropout).
    """
    E, out_dim = w_down_EOH.shape[:2]
    rows = []
    for n, (x, e) in enumerate(zip(x_ND, expert_N.tolist(), strict=True)):
        if e == E:
            rows.append(x.new_zeros(out_dim))
            continue
        hidden = w_up_EHD[e] @ x
        if b_up_EH is not None:
            hidden = hidden + b_up_EH[e]
        acted = {
            "relu": torch.where(hidden > 0, hidden, 0),
            "gelu": hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2,
            "silu": hidden / (1 + torch.exp(-hidden)),
        }[activation]
        if keep_NH is not None:
            acted = acted * keep_NH[n] / (1 - dropout)
        y = w_down_EOH[e] @ acted
        rows.append(y if b_down_EO is None else y + b_down_EO[e])
    return torch.stack(rows) if rows else x_ND.new_zeros(0, out_dim)
