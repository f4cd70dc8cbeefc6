"""LoRA, row by row: the reference implementation."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_lora(
    x_ND: Tensor, expert_N: Tensor, w_EOD: Tensor, a_EXD: Tensor, b_EOX: Tensor, alpha: float, bias_EO: Tensor | None
) -> Tensor:
    """``y_NO``: one adapted matrix; row n through that of expert ``expert_N[n]``, 0 where that is E."""
    rows = []
    for x, e in zip(x_ND, expert_N.tolist(), strict=True):
        if e == w_EOD.shape[0]:
            rows.append(x.new_zeros(w_EOD.shape[1]))
            continue
        y = w_EOD[e] @ x
        for r in range(a_EXD.shape[1]):
            y = y + alpha / a_EXD.shape[1] * b_EOX[e, :, r] * (a_EXD[e, r] @ x)
        rows.append(y if bias_EO is None else y + bias_EO[e])
    return torch.stack(rows) if rows else x_ND.new_zeros(0, w_EOD.shape[1])
