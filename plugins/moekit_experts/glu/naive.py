"""GLU experts, row by row: the reference implementation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def naive_glu(
    x_ND: Tensor,
    expert_N: Tensor,
    w_gate_EHD: Tensor,
    w_up_EHD: Tensor,
    w_down_EOH: Tensor,
    activation: str,
    scale_EH: Tensor | None = None,
    keep_NH: Tensor | None = None,
    dropout: float = 0.0,
    *,
    b_gate_EH: Tensor | None = None,
    b_up_EH: Tensor | None = None,
    b_down_EO: Tensor | None = None,
    clamp: float = math.inf,
    alpha: float = 1.0,
    up_shift: float = 0.0,
    w_output_ED: Tensor | None = None,
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
        gate, up = w_gate_EHD[e] @ x, w_up_EHD[e] @ x
        if b_gate_EH is not None and b_up_EH is not None:
            gate, up = gate + b_gate_EH[e], up + b_up_EH[e]
        gate = torch.where(gate < clamp, gate, clamp)
        up = torch.where(up.abs() < clamp, up, clamp * up.sign()) + up_shift
        sigmoid = 1 / (1 + torch.exp(-alpha * gate))
        acted = {
            "sigmoid": sigmoid,
            "silu": gate * sigmoid,
            "gelu": gate * (1 + torch.erf(gate / math.sqrt(2))) / 2,
            "relu": torch.where(gate > 0, gate, 0),
        }[activation]
        hidden = acted * up
        if scale_EH is not None:
            hidden = hidden * scale_EH[e]
        if keep_NH is not None:
            hidden = hidden * keep_NH[n] / (1 - dropout)
        y = w_down_EOH[e] @ hidden
        if b_down_EO is not None:
            y = y + b_down_EO[e]
        rows.append(y if w_output_ED is None else y / (1 + torch.exp(-(w_output_ED[e] @ x))))
    return torch.stack(rows) if rows else x_ND.new_zeros(0, out_dim)
