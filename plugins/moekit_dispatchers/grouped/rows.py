"""Rows gathered from tokens, and rows summed into tokens: operators with derivatives of any order.

They are ``torch.library`` operators, so that ``torch.compile`` treats each as one call with static shapes. Rows without
an expert come out 0 and receive no gradient, whatever they hold. Sums have a fixed order. On a GPU moekit's Triton
kernels compute them in one pass, if Triton is installed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_dispatchers.grouped.gpus import kernels_take

AT_ONCE = 1 << 18
"""Numbers of a block of rows in the gates' backward on a CPU: its arrays stay in the processor's cache."""

AT_ONCE_ON_A_DEVICE = 1 << 24
"""The same without Triton on another device: 64 MiB in fp32."""


class ByToken(NamedTuple):
    """Which token each row has, and which rows each token has. Arguments of the operators below, in this order.

    Attributes:
        token_N: int64, the token of each row.
        by_token_N: int64, the rows listed token by token, those without an expert at the end.
        start_T: int64 ``[T + 1]``, where each token's rows start in ``by_token_N``; last, how many rows have an expert.
        all_sent: whether all rows have one, as a static fact: then none is cleared.
    """

    token_N: Tensor
    by_token_N: Tensor
    start_T: Tensor
    all_sent: bool


@torch.library.custom_op("moekit::take_rows", mutates_args=())
def take_rows(
    x_TD: Tensor, token_N: Tensor, by_token_N: Tensor, start_T: Tensor, all_sent: bool, dtype: torch.dtype
) -> Tensor:
    """``x_ND`` in ``dtype``: row n is token ``token_N[n]``, rounded before it is copied; 0 without an expert."""
    x_ND = x_TD.to(dtype).index_select(0, token_N)
    return x_ND if all_sent else clear_tail(x_ND, start_T[-1])


@take_rows.register_fake
def _(x_TD: Tensor, token_N: Tensor, by_token_N: Tensor, start_T: Tensor, all_sent: bool, dtype: torch.dtype) -> Tensor:
    return x_TD.new_empty(token_N.shape[0], x_TD.shape[1], dtype=dtype)


@torch.library.custom_op("moekit::sum_rows", mutates_args=())
def sum_rows(
    y_NO: Tensor,
    gate_N: Tensor | None,
    token_N: Tensor,
    by_token_N: Tensor,
    start_T: Tensor,
    all_sent: bool,
    dtype: torch.dtype,
) -> Tensor:
    """``y_TO`` in ``dtype``: each token's rows, times their gates, summed; 0 for a token without rows.

    Products and sums are in fp32, or in fp64 if rows, gates or the result are.

    Args:
        y_NO: rows.
        gate_N: the weight of each row; None for 1.
        token_N: this and the rest: see ``ByToken``.
        by_token_N: see there.
        start_T: see there.
        all_sent: see there.
        dtype: of the result.
    """
    wide = _wide(y_NO.dtype, dtype, y_NO.dtype if gate_N is None else gate_N.dtype)
    if wide == torch.float32 and kernels_take(y_NO):
        from moekit_dispatchers.triton import launch

        return launch.combine(y_NO.contiguous(), gate_N, by_token_N, start_T, dtype)
    T = start_T.shape[0] - 1
    if all_sent:
        bag_T = start_T
    elif on_host(y_NO):
        by_token_N, bag_T = by_token_N[: int(start_T[-1])], start_T
    else:
        # embedding_bag's last bag runs to the end of the rows, so rows without a token get extra bags: T of them,
        # because one long bag would be summed by one thread.
        rest = by_token_N.shape[0] - start_T[-1]
        bag_T = torch.cat([start_T, start_T[-1] + rest * torch.arange(1, T + 1, device=y_NO.device) // max(T, 1)])
    gate_N = None if gate_N is None else gate_N.to(wide).index_select(0, by_token_N)
    y_TO = F.embedding_bag(
        by_token_N, y_NO.to(wide).contiguous(), bag_T, mode="sum", per_sample_weights=gate_N, include_last_offset=True
    )
    return y_TO[:T].to(dtype)


@sum_rows.register_fake
def _(
    y_NO: Tensor,
    gate_N: Tensor | None,
    token_N: Tensor,
    by_token_N: Tensor,
    start_T: Tensor,
    all_sent: bool,
    dtype: torch.dtype,
) -> Tensor:
    return y_NO.new_empty(start_T.shape[0] - 1, y_NO.shape[1], dtype=dtype)


@torch.library.custom_op("moekit::gated_backward", mutates_args=())
def gated_backward(
    g_TO: Tensor, y_NO: Tensor, gate_N: Tensor, token_N: Tensor, start_T: Tensor, all_sent: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of ``sum_rows`` for rows and gates, without another array of rows."""
    (N, width), wide = y_NO.shape, _wide(y_NO.dtype, gate_N.dtype, g_TO.dtype)
    if wide == torch.float32 and kernels_take(y_NO):
        from moekit_dispatchers.triton import launch

        return launch.gated_backward(g_TO.contiguous(), y_NO.contiguous(), gate_N.contiguous(), token_N, start_T[-1:])
    dy_NO, d_gate_N = y_NO.new_empty(N, width), gate_N.new_empty(N)
    block = max(1, (AT_ONCE if on_host(y_NO) else AT_ONCE_ON_A_DEVICE) // max(1, width))
    for start in range(0, N, block):
        rows = slice(start, start + block)
        g_nO = g_TO.index_select(0, token_N[rows]).to(wide)
        d_gate_N[rows] = torch.linalg.vecdot(g_nO, y_NO[rows].to(wide))
        torch.mul(g_nO, gate_N[rows, None], out=dy_NO[rows])
    return (dy_NO, d_gate_N) if all_sent else (clear_tail(dy_NO, start_T[-1]), clear_tail(d_gate_N, start_T[-1]))


@gated_backward.register_fake
def _(
    g_TO: Tensor, y_NO: Tensor, gate_N: Tensor, token_N: Tensor, start_T: Tensor, all_sent: bool
) -> tuple[Tensor, Tensor]:
    return y_NO.new_empty(y_NO.shape), gate_N.new_empty(gate_N.shape)


def _save_take(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_TD, *route, ctx.all_sent, _ = inputs
    ctx.dtype = x_TD.dtype
    ctx.save_for_backward(*route)


def _take_backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor | None, ...]:
    return sum_rows(g_ND, None, *ctx.saved_tensors, ctx.all_sent, ctx.dtype), *(None,) * 5


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y_NO, gate_N, *route, ctx.all_sent, _ = inputs
    ctx.dtype = y_NO.dtype
    ctx.save_for_backward(y_NO if gate_N is not None and ctx.needs_input_grad[1] else None, gate_N, *route)


def _sum_backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
    y_NO, gate_N, *route = ctx.saved_tensors
    rest = (None,) * 5
    if y_NO is not None and not torch.is_grad_enabled():
        dy_NO, d_gate_N = gated_backward(g_TO, y_NO, gate_N, route[0], route[2], ctx.all_sent)
        return dy_NO, d_gate_N, *rest
    if gate_N is None:
        return take_rows(g_TO, *route, ctx.all_sent, ctx.dtype), None, *rest
    wide, d_gate_N = _wide(g_TO.dtype, gate_N.dtype, ctx.dtype), None
    g_NO = take_rows(g_TO, *route, ctx.all_sent, wide)
    if y_NO is not None:
        past_N = torch.arange(y_NO.shape[0], device=y_NO.device) >= route[2][-1]
        d_gate_N = torch.linalg.vecdot(g_NO, y_NO.to(wide)).masked_fill(past_N, 0).to(gate_N.dtype)
    scale = torch.mul if torch.is_grad_enabled() else torch.Tensor.mul_  # in place unless a second derivative needs g
    return scale(g_NO, gate_N[:, None]).to(ctx.dtype), d_gate_N, *rest


take_rows.register_autograd(_take_backward, setup_context=_save_take)
sum_rows.register_autograd(_sum_backward, setup_context=_save_sum)


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def on_host(t: Tensor) -> bool:
    """Whether values of this tensor can be read without synchronising with a device."""
    return t.device.type == "cpu"


def clear_tail(y_NX: Tensor, num_rows: Tensor) -> Tensor:
    """Zeroes the rows from ``num_rows`` (0-d) on, in place."""
    if on_host(y_NX):
        y_NX[int(num_rows) :] = 0
        return y_NX
    past_N = torch.arange(y_NX.shape[0], device=y_NX.device) >= num_rows
    return y_NX.masked_fill_(past_N if y_NX.ndim == 1 else past_N[:, None], 0)
