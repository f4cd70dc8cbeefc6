"""Operators of the grouped dispatcher, each with its derivatives: rows gathered from tokens, rows summed into tokens,
and the grouped product.

They are ``torch.library`` operators, so that ``torch.compile`` treats each as one call with static shapes. Rows past
the last group come out 0 and receive no gradient, whatever they hold. Every backward uses the same operators, so
derivatives of any order are right.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- rows from tokens, and back -----------------------------------------------------------------------------------


@torch.library.custom_op("moekit::take_rows", mutates_args=())
def take_rows(x_TD: Tensor, token_N: Tensor, by_token_N: Tensor, start_T: Tensor) -> Tensor:
    """``x_ND``: row n is token ``token_N[n]``; rows past ``start_T[-1]`` are 0.

    Args:
        x_TD: tokens.
        token_N: int64, the token of each row.
        by_token_N: int64, the rows listed token by token, those without a token last.
        start_T: int64 ``[T + 1]``, where each token's rows start in ``by_token_N``; last, how many there are.
    """
    x_ND = x_TD.index_select(0, token_N)
    return _clear_tail(x_ND, start_T[-1])


@take_rows.register_fake
def _(x_TD: Tensor, token_N: Tensor, by_token_N: Tensor, start_T: Tensor) -> Tensor:
    return x_TD.new_empty(token_N.shape[0], x_TD.shape[1])


@torch.library.custom_op("moekit::sum_rows", mutates_args=())
def sum_rows(y_NO: Tensor, gate_N: Tensor | None, token_N: Tensor, by_token_N: Tensor, start_T: Tensor) -> Tensor:
    """``y_TO``: each token's rows, times their gates, summed; 0 for a token without rows.

    The other arguments are those of ``take_rows``.

    Args:
        y_NO: rows, of the gates' dtype.
        gate_N: the weight of each row; None for 1.
    """
    T = start_T.shape[0] - 1
    if _on_host(y_NO):
        by_token_N, bag_T = by_token_N[: int(start_T[-1])], start_T
    else:
        # embedding_bag's last bag runs to the end of the rows, so rows without a token get extra bags: T of them,
        # because one long bag would be summed by one thread.
        rest = by_token_N.shape[0] - start_T[-1]
        bag_T = torch.cat([start_T, start_T[-1] + rest * torch.arange(1, T + 1, device=y_NO.device) // max(T, 1)])
    gate_N = None if gate_N is None else gate_N.index_select(0, by_token_N)
    return F.embedding_bag(
        by_token_N, y_NO.contiguous(), bag_T, mode="sum", per_sample_weights=gate_N, include_last_offset=True
    )[:T]


@sum_rows.register_fake
def _(y_NO: Tensor, gate_N: Tensor | None, token_N: Tensor, by_token_N: Tensor, start_T: Tensor) -> Tensor:
    return y_NO.new_empty(start_T.shape[0] - 1, y_NO.shape[1])


def _save_take(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _take_backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor, None, None, None]:
    return sum_rows(g_ND, None, *ctx.saved_tensors), None, None, None


def _save_sum(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor], output: Tensor) -> None:
    y_NO, gate_N, *route = inputs
    ctx.save_for_backward(None if gate_N is None else y_NO, gate_N, *route)


def _sum_backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    y_NO, gate_N, *route = ctx.saved_tensors
    g_NO = take_rows(g_TO, *route)
    if gate_N is None:
        return g_NO, None, None, None, None
    d_gate_N = None
    if ctx.needs_input_grad[1]:
        past_N = torch.arange(y_NO.shape[0], device=y_NO.device) >= route[-1][-1]
        d_gate_N = torch.linalg.vecdot(g_NO, y_NO).masked_fill(past_N, 0)  # past the last group y is undefined
    if not ctx.needs_input_grad[0]:
        return None, d_gate_N, None, None, None
    # In place unless a second derivative needs g_NO: allocating another array of rows costs more than the product.
    scale = torch.mul if torch.is_grad_enabled() else torch.Tensor.mul_
    return scale(g_NO, gate_N[:, None]), d_gate_N, None, None, None


take_rows.register_autograd(_take_backward, setup_context=_save_take)
sum_rows.register_autograd(_sum_backward, setup_context=_save_sum)


# ---- the grouped product --------------------------------------------------------------------------------------------


@torch.library.custom_op("moekit::grouped_linear", mutates_args=())
def grouped_linear(x_ND: Tensor, w_EHD: Tensor, end_E: Tensor) -> Tensor:
    """``y_NH``: each row through its own expert's weight; rows past the last group are 0.

    Args:
        x_ND: rows, sorted by expert.
        w_EHD: weights, laid out like ``nn.Linear``; any view of them.
        end_E: int32, where each expert's rows end.
    """
    N, H = x_ND.shape[0], w_EHD.shape[1]
    if N and _supports(x_ND, end_E.shape[0]):
        y_NH = F.grouped_mm(_aligned(x_ND), _aligned(w_EHD).mT, offs=end_E)[:, :H].contiguous()
        return _clear_tail(y_NH, end_E[-1])
    y_NH = x_ND.new_zeros(N, H)
    for e, rows in _slices(end_E) if N else ():
        torch.mm(x_ND[rows], w_EHD[e].t(), out=y_NH[rows])
    return y_NH


@grouped_linear.register_fake
def _(x_ND: Tensor, w_EHD: Tensor, end_E: Tensor) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_EHD.shape[1])


@torch.library.custom_op("moekit::grouped_outer", mutates_args=())
def grouped_outer(g_NH: Tensor, x_ND: Tensor, end_E: Tensor) -> Tensor:
    """``w_EHD``: each expert's sum over its rows of ``g_NH`` outer ``x_ND``: the weight gradient of the above."""
    E, N, H, D = end_E.shape[0], *g_NH.shape, x_ND.shape[1]
    if N and _supports(x_ND, E):
        w_EHD = F.grouped_mm(_aligned(g_NH).t(), _aligned(x_ND), offs=end_E)[:, :H, :D].contiguous()
        if _on_host(x_ND):
            return w_EHD
        # On sm100 the products of experts without rows are undefined (pytorch issue 172439).
        idle_E = end_E == F.pad(end_E[:-1], (1, 0))
        return w_EHD.masked_fill_(idle_E[:, None, None], 0)
    w_EHD = x_ND.new_zeros(E, H, D)
    for e, rows in _slices(end_E) if N else ():
        torch.mm(g_NH[rows].t(), x_ND[rows], out=w_EHD[e])
    return w_EHD


@grouped_outer.register_fake
def _(g_NH: Tensor, x_ND: Tensor, end_E: Tensor) -> Tensor:
    return x_ND.new_empty(end_E.shape[0], g_NH.shape[1], x_ND.shape[1])


def _save_all(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_ND, w_EHD, end_E = ctx.saved_tensors
    dx_ND = grouped_linear(g_NH, w_EHD.mT, end_E) if ctx.needs_input_grad[0] else None
    dw_EHD = grouped_outer(g_NH, x_ND, end_E) if ctx.needs_input_grad[1] else None
    return dx_ND, dw_EHD, None


def _outer_backward(ctx: Any, g_EHD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    g_NH, x_ND, end_E = ctx.saved_tensors
    d_left_NH = grouped_linear(x_ND, g_EHD, end_E) if ctx.needs_input_grad[0] else None
    d_right_ND = grouped_linear(g_NH, g_EHD.mT, end_E) if ctx.needs_input_grad[1] else None
    return d_left_NH, d_right_ND, None


grouped_linear.register_autograd(_linear_backward, setup_context=_save_all)
grouped_outer.register_autograd(_outer_backward, setup_context=_save_all)


# ---- helpers --------------------------------------------------------------------------------------------------------


def in_autocast_dtype(x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, weights and biases in autocast's dtype where autocast is on: it does not cover ``F.grouped_mm``."""
    device = x_ND.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return x_ND, w_EHD, b_EH
    dtype = torch.get_autocast_dtype(device)
    return x_ND.to(dtype), w_EHD.to(dtype), None if b_EH is None else b_EH.to(dtype)


def narrow_keys(key: Tensor, largest: int) -> Tensor:
    """Sort keys in the narrowest type that holds them: sorting 16 bits takes a quarter of the time of 64."""
    return key.to(torch.int16 if largest < 2**15 else torch.int32)


GROUPED_MM_LIMIT = 1024
"""``F.grouped_mm`` in bf16 raises for this number of experts and more where it has a grouped kernel (sm90, sm100)."""


def _supports(t: Tensor, num_experts: int) -> bool:
    """Whether ``F.grouped_mm`` supports such a tensor and number of experts; otherwise a loop over experts runs."""
    if t.device.type == "cuda" and t.dtype == torch.bfloat16 and num_experts >= GROUPED_MM_LIMIT:
        return False
    return t.dtype in (torch.float32, torch.bfloat16, torch.float16) and t.device.type in ("cpu", "cuda")


def _aligned(t: Tensor) -> Tensor:
    """The tensor as ``F.grouped_mm`` requires it: it starts at, and has widths and strides of, multiples of 16 bytes.

    Rows ``[N, D]`` must have consecutive elements; weights may be a transposed view. Copies only where necessary (odd
    widths, which are padded with zeros; expanded gradients, transposed rows, slices of odd arrays). Violations end in
    an assertion on a GPU, which loses its context, and in nothing on a CPU.
    """
    unit = 16 // t.element_size()
    widths = t.shape[1:]  # D of rows ``[N, D]``; H and D of weights ``[E, H, D]``
    if any(width % unit for width in widths):
        return F.pad(t, [p for width in reversed(widths) for p in (0, -width % unit)])
    consecutive = t.stride(-1) == 1 or (t.ndim == 3 and t.stride(-2) == 1)
    spaced = all(stride == 1 or (stride and stride % unit == 0) for stride in t.stride())
    if consecutive and spaced and t.data_ptr() % 16 == 0:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def _slices(end_E: Tensor) -> list[tuple[int, slice]]:
    """Each expert that has rows, with its rows. Reads the ends on the host, which synchronises with a GPU."""
    ends = end_E.tolist()
    return [(e, slice(s, t)) for e, (s, t) in enumerate(zip([0, *ends], ends, strict=False)) if t > s]


def _on_host(t: Tensor) -> bool:
    """Whether values of this tensor can be read without synchronising with a device."""
    return t.device.type == "cpu"


def _clear_tail(y_ND: Tensor, num_rows: Tensor) -> Tensor:
    """Zeroes the rows from ``num_rows`` (0-d) on, in place."""
    if _on_host(y_ND):
        y_ND[int(num_rows) :] = 0
        return y_ND
    return y_ND.masked_fill_((torch.arange(y_ND.shape[0], device=y_ND.device) >= num_rows)[:, None], 0)
