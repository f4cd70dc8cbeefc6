"""The textbook layer for experts of standard form as one autograd function: the same products, few operators.

Shapes: T tokens, K experts of each, N = T·K rows sorted by expert, D in, H hidden, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_dispatchers.derivatives import forbid_second_derivative
from moekit_dispatchers.fused.activations import activate_backward
from moekit_dispatchers.grouped.ops import narrow_keys

FEW = 1 << 10
"""Pairs up to which sorting 64 bits takes no longer than making 16 of them and sorting those."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}
"""By the names in ``StandardForm.activation``."""


def whole(
    x_TD: Tensor, gate_TK: Tensor, w_in_EXD: Tensor, w_out_EOH: Tensor, expert_TK: Tensor, activation: str
) -> Tensor:
    """``y_TO``: for every token the sum over its experts of ``gate · down(act(...))``, in fp32.

    All pairs have an expert. Differentiable once, by ``x_TD``, ``gate_TK`` and both weights.
    """
    if not torch.is_grad_enabled():  # a function of autograd takes longer to call than a small product
        return _computed(x_TD, gate_TK, w_in_EXD, w_out_EOH, expert_TK, activation)[0]
    return WholeExperts.apply(x_TD, gate_TK, w_in_EXD, w_out_EOH, expert_TK, activation)  # type: ignore[no-any-return, no-untyped-call]


def _computed(
    x_TD: Tensor, gate_TK: Tensor, w_in_EXD: Tensor, w_out_EOH: Tensor, expert_TK: Tensor, activation: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``y_TO``, and what backward needs: sorts, gathers, multiplies, sums by token."""
    (T, K), E, H = expert_TK.shape, w_in_EXD.shape[0], w_out_EOH.shape[2]
    N = T * K
    key_N = expert_TK.reshape(-1)
    expert_N, order_N = (key_N if N <= FEW else narrow_keys(key_N, E)).sort(stable=True)
    end_E = torch.searchsorted(expert_N, torch.arange(E, dtype=expert_N.dtype), right=True, out_int32=True)
    row_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(N))  # of each pair
    token_N = order_N if K == 1 else order_N.div(K, rounding_mode="floor")
    x_ND = x_TD.index_select(0, token_N)
    h_NX = F.grouped_mm(x_ND, w_in_EXD.mT, offs=end_E)
    if h_NX.shape[1] == H:
        act_NH = acted_NH = ACTIVATIONS[activation](h_NX)
    else:
        gate_NH, up_NH = h_NX.chunk(2, 1)
        acted_NH = ACTIVATIONS[activation](gate_NH)
        act_NH = acted_NH * up_NH
    y_NO = F.grouped_mm(act_NH, w_out_EOH.mT, offs=end_E)
    saved = (gate_TK, w_in_EXD, w_out_EOH, order_N, row_N, token_N, end_E, x_ND, h_NX, acted_NH, act_NH, y_NO)
    return _sum(y_NO, row_N, K, gate_TK), saved


class WholeExperts(torch.autograd.Function):
    """``whole``, with derivatives. Saves all rows that it makes."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """See ``whole``."""
        y_TO, saved = _computed(*args)
        ctx.save_for_backward(*saved)
        ctx.activation = args[-1]
        return y_TO

    @staticmethod
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
        """All gradients, in arrays of all rows.

        Raises:
            MoekitError: under ``create_graph``.
        """
        forbid_second_derivative("textbook")
        gate_TK, w_in_EXD, w_out_EOH, order_N, row_N, token_N, end_E, x_ND, h_NX, acted_NH, act_NH, y_NO = (
            ctx.saved_tensors
        )
        needs_x, needs_gate, needs_in, needs_out = ctx.needs_input_grad[:4]
        K, d_gate_TK, dx_TD, dw_in_EXD, dw_out_EOH = gate_TK.shape[1], None, None, None, None
        g_NO = g_TO.index_select(0, token_N)
        if needs_gate:
            d_gate_TK = torch.linalg.vecdot(y_NO, g_NO).index_select(0, row_N).view(-1, K)
        g_NO.mul_(gate_TK.reshape(-1, 1).index_select(0, order_N))
        if needs_out:
            dw_out_EOH = F.grouped_mm(g_NO.t(), act_NH, offs=end_E)
        if needs_x or needs_in:
            d_NH = F.grouped_mm(g_NO, w_out_EOH, offs=end_E)
            dh_NX = activate_backward(d_NH, h_NX, acted_NH, torch.empty_like(h_NX), ctx.activation, known=True)
            if needs_in:
                dw_in_EXD = F.grouped_mm(dh_NX.t(), x_ND, offs=end_E)
            if needs_x:
                dx_TD = _sum(F.grouped_mm(dh_NX, w_in_EXD, offs=end_E), row_N, K, None)
        return dx_TD, d_gate_TK, dw_in_EXD, dw_out_EOH, None, None


def _sum(y_NO: Tensor, row_N: Tensor, K: int, gate_TK: Tensor | None) -> Tensor:
    """``y_TO``: each token's rows, times their gates, summed."""
    if K == 1:
        y_TO = y_NO.index_select(0, row_N)
        return y_TO if gate_TK is None else y_TO.mul_(gate_TK)
    gate_N = None if gate_TK is None else gate_TK.reshape(-1)
    y_TO = torch.embedding_bag(y_NO, row_N, torch.arange(0, len(row_N), K), False, 0, False, gate_N)[0]
    return y_TO
