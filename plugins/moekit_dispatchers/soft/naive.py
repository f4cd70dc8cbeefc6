"""Soft dispatch, token by token and slot by slot: the reference implementation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def naive_blend(x_TD: Tensor, combine_TE: Tensor, expert: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Jacobs et al. 1991: ``y_t = sum over e of combine[t, e] · expert_e(x_t)``.

    Args:
        x_TD: tokens.
        combine_TE: the weight of each expert in each token's output.
        expert: ``expert(e, x_D)``, the output of expert e for one vector.

    Returns:
        ``y_TO`` and the experts' own outputs, ``expert_TEO``.
    """
    T, E = combine_TE.shape
    outputs = [[expert(e, x_TD[t]) for e in range(E)] for t in range(T)]
    y = []
    for t in range(T):
        total = combine_TE[t, 0] * outputs[t][0]
        for e in range(1, E):
            total = total + combine_TE[t, e] * outputs[t][e]
        y.append(total)
    return torch.stack(y), torch.stack([torch.stack(row) for row in outputs])


def naive_slots(
    x_TD: Tensor, dispatch_TEP: Tensor, combine_TEP: Tensor, expert: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Puigcerver et al. 2023, equations 1 to 3: slots filled with mixtures of tokens, outputs mixed back.

    Args:
        x_TD: tokens.
        dispatch_TEP: weight of token t in slot p of expert e.
        combine_TEP: weight of that slot in token t's output.
        expert: ``expert(e, x_D)``, the output of expert e for one vector.

    Returns:
        ``y_TO``.
    """
    T, E, P = dispatch_TEP.shape
    y = [torch.zeros((), dtype=x_TD.dtype)] * T
    for e in range(E):
        for p in range(P):
            slot = torch.zeros_like(x_TD[0])
            for t in range(T):
                slot = slot + dispatch_TEP[t, e, p] * x_TD[t]
            out = expert(e, slot)
            for t in range(T):
                y[t] = y[t] + combine_TEP[t, e, p] * out
    return torch.stack(y)
