"""The grouped product and what follows from it, as operators with derivatives of any order.

They are ``torch.library`` operators, so that ``torch.compile`` treats each as one call with static shapes. Rows past
the last group come out 0 and receive no gradient, whatever they hold. Every backward uses the same operators.

A product is ``F.grouped_mm`` on a CPU and where a GPU has one kernel for it (``gpus.grouped_is_fast``), moekit's Triton
kernel on other GPUs, and else one product for each expert, which reads the ends of the groups on the host.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_dispatchers.grouped.gpus import DTYPES, capability_of, grouped_is_fast, kernels_take, product_dtype
from moekit_dispatchers.grouped.rows import clear_tail, on_host, sum_rows


@torch.library.custom_op("moekit::grouped_linear", mutates_args=())
def grouped_linear(x_ND: Tensor, w_EHD: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    """``y_NH``: each row through its own expert's weight; rows past the last group are 0.

    Args:
        x_ND: rows, sorted by expert.
        w_EHD: weights, laid out like ``nn.Linear``; any view of them.
        end_E: int32, where each expert's rows end.
        all_sent: whether the last group ends with the last row, as a static fact: then none is cleared.
    """
    N, H = x_ND.shape[0], w_EHD.shape[1]
    if N and _has_grouped_mm(x_ND, end_E.shape[0]):
        y_NH = F.grouped_mm(_aligned(x_ND), _aligned(w_EHD).mT, offs=end_E)[:, :H].contiguous()
        return y_NH if all_sent else clear_tail(y_NH, end_E[-1])
    if N and kernels_take(x_ND):
        from moekit_dispatchers.triton import launch

        y_NH = launch.linear(x_ND, w_EHD, end_E)
        return y_NH if all_sent else clear_tail(y_NH, end_E[-1])
    y_NH = x_ND.new_zeros(N, H)
    for e, rows in _slices(end_E) if N else ():
        torch.mm(x_ND[rows], w_EHD[e].t(), out=y_NH[rows])
    return y_NH


@grouped_linear.register_fake
def _(x_ND: Tensor, w_EHD: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_EHD.shape[1])


@torch.library.custom_op("moekit::grouped_outer", mutates_args=())
def grouped_outer(g_NH: Tensor, x_ND: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    """``w_EHD``: each expert's sum over its rows of ``g_NH`` outer ``x_ND``: the weight gradient of the above."""
    E, N, H, D = end_E.shape[0], *g_NH.shape, x_ND.shape[1]
    if N and _has_grouped_mm(x_ND, E):
        w_EHD = F.grouped_mm(_aligned(g_NH).t(), _aligned(x_ND), offs=end_E)[:, :H, :D].contiguous()
        if (capability_of(x_ND.device) or (0, 0)) < (10, 0):
            return w_EHD
        # On sm100 the products of experts without rows are undefined (pytorch issue 172439).
        idle_E = end_E == F.pad(end_E[:-1], (1, 0))
        return w_EHD.masked_fill_(idle_E[:, None, None], 0)
    if N and kernels_take(x_ND):
        from moekit_dispatchers.triton import launch

        return launch.outer(g_NH, x_ND, end_E)
    w_EHD = x_ND.new_zeros(E, H, D)
    for e, rows in _slices(end_E) if N else ():
        torch.mm(g_NH[rows].t(), x_ND[rows], out=w_EHD[e])
    return w_EHD


@grouped_outer.register_fake
def _(g_NH: Tensor, x_ND: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    return x_ND.new_empty(end_E.shape[0], g_NH.shape[1], x_ND.shape[1])


@torch.library.custom_op("moekit::expert_rows", mutates_args=())
def expert_rows(p_EX: Tensor, expert_N: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    """``p_NX``: for each row its expert's slice; 0 past the last group. The gradient of a slice is rounded once.

    Args:
        p_EX: a parameter that is stacked over experts.
        expert_N: integers, ascending: the expert of each row; E past the last group.
        end_E: int32, where each expert's rows end.
        all_sent: as in ``grouped_linear``.
    """
    if all_sent:
        return p_EX.index_select(0, expert_N.int())
    return clear_tail(p_EX.index_select(0, expert_N.clamp(max=p_EX.shape[0] - 1).int()), end_E[-1])


@expert_rows.register_fake
def _(p_EX: Tensor, expert_N: Tensor, end_E: Tensor, all_sent: bool) -> Tensor:
    return p_EX.new_empty(expert_N.shape[0], p_EX.shape[1])


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.all_sent = inputs
    ctx.save_for_backward(*tensors)


def _linear_backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x_ND, w_EHD, end_E = ctx.saved_tensors
    dx_ND = grouped_linear(g_NH, w_EHD.mT, end_E, ctx.all_sent) if ctx.needs_input_grad[0] else None
    dw_EHD = grouped_outer(g_NH, x_ND, end_E, ctx.all_sent) if ctx.needs_input_grad[1] else None
    return dx_ND, dw_EHD, None, None


def _outer_backward(ctx: Any, g_EHD: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    g_NH, x_ND, end_E = ctx.saved_tensors
    d_left_NH = grouped_linear(x_ND, g_EHD, end_E, ctx.all_sent) if ctx.needs_input_grad[0] else None
    d_right_ND = grouped_linear(g_NH, g_EHD.mT, end_E, ctx.all_sent) if ctx.needs_input_grad[1] else None
    return d_left_NH, d_right_ND, None, None


def _save_experts(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, ctx.all_sent = inputs
    ctx.save_for_backward(*tensors)


def _expert_rows_backward(ctx: Any, g_NX: Tensor) -> tuple[Tensor, None, None, None]:
    """Each expert's sum: a bag of rows on a CPU, where that takes a tenth of the time; else a product with ones.

    On a GPU a bag is summed by one thread for each column, however long it is.
    """
    expert_N, end_E = ctx.saved_tensors
    N, E = g_NX.shape[0], end_E.shape[0]
    if on_host(g_NX):
        bags = (expert_N.clamp(max=E - 1).long(), torch.arange(N), F.pad(end_E.long(), (1, 0)))
        return sum_rows(g_NX, None, *bags, ctx.all_sent, g_NX.dtype), None, None, None
    one_NX = g_NX.new_ones(N, 16 // g_NX.element_size())  # of the least width that needs no padding
    return grouped_outer(g_NX, one_NX, end_E, ctx.all_sent)[:, :, 0], None, None, None


grouped_linear.register_autograd(_linear_backward, setup_context=_save_all)
grouped_outer.register_autograd(_outer_backward, setup_context=_save_all)
expert_rows.register_autograd(_expert_rows_backward, setup_context=_save_experts)


# ---- helpers --------------------------------------------------------------------------------------------------------


def in_autocast_dtype(x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, weights and biases in the dtype of products: autocast does not cover ``F.grouped_mm``."""
    b_EH = None if b_EH is None else b_EH.to(product_dtype(b_EH))
    return x_ND.to(product_dtype(x_ND)), w_EHD.to(product_dtype(w_EHD)), b_EH


def narrow_keys(key: Tensor, largest: int) -> Tensor:
    """Sort keys in the narrowest type that holds them: sorting 16 bits takes a quarter of the time of 64."""
    return key.to(torch.int16 if largest < 2**15 else torch.int32)


def _has_grouped_mm(t: Tensor, num_experts: int) -> bool:
    """Whether ``F.grouped_mm`` takes such a tensor and number of experts, and needs no number on the host for it."""
    if t.dtype not in DTYPES:
        return False
    return t.device.type == "cpu" or grouped_is_fast(t.dtype, capability_of(t.device), num_experts)


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
