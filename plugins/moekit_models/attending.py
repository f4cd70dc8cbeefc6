"""Softmax attention: by ``F.scaled_dot_product_attention``, or by blocks of queries, in training on a CPU.

torch's fused kernel for CPUs computes the scores again in backward, and needs keys and values of one width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.compat import is_eager, softmax_backward_
from moekit_models.blocks import Mask
from moekit_models.derivatives import differentiable_gradients

BLOCK = 64
"""Queries of a block: it skips the keys after its last query."""

MOST = 256
"""Positions up to which the probabilities are kept for backward: up to ``4 · S`` bytes for each query and head."""


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Mask, scale: float | None) -> Tensor:
    """Softmax attention.

    Args:
        q: ``[B, S, heads, D]``.
        k: ``[B, L, key heads, D]``; each key head is shared by as many query heads, which follow each other.
        v: ``[B, L, key heads, V]``; V may differ from D.
        visible: the mask.
        scale: the factor of scores; None for ``1/sqrt(D)``.

    Returns:
        ``[B, S, heads, V]``.
    """
    if by_blocks(q, k, v, visible):
        return cast(Tensor, InBlocks.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale))  # type: ignore[no-untyped-call]
    width, value_dim, shared = q.shape[-1], v.shape[-1], k.shape[2] != q.shape[2]
    scale = width**-0.5 if scale is None and width < value_dim else scale
    # Fused kernels need one width: padding with zeros changes no score, and is removed again.
    # (1 thread, fp32, 16 x 4 heads x 256 positions, 48 and 32 wide: 34 ms forward and backward against 62.)
    if width < value_dim:
        q, k = F.pad(q, (0, value_dim - width)), F.pad(k, (0, value_dim - width))
    elif value_dim < width:
        v = F.pad(v, (0, width - value_dim))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, **visible, scale=scale, enable_gqa=shared)
    return y[..., :value_dim].transpose(1, 2)


def by_blocks(q: Tensor, k: Tensor, v: Tensor, visible: Mask) -> bool:
    """Whether ``InBlocks`` should compute: decided by static facts, never by values."""
    S = q.shape[1]
    return (
        torch.is_grad_enabled()
        and bool(visible.get("is_causal"))
        and BLOCK < S == k.shape[1] <= MOST
        and S % BLOCK == 0
        and all(type(t) is Tensor and t.dtype == torch.float32 and t.device.type == "cpu" for t in (q, k, v))
        and is_eager()
    )


class InBlocks(torch.autograd.Function):
    """Causal attention, block by block of queries; keeps the probabilities. Differentiable any number of times.

    N is batch times key heads; rows X of a block are the queries of all heads that share a key head.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Saves the probabilities of each block."""
        heads, key_heads = q.shape[2], k.shape[2]
        q_bNXD = _blocks(q, key_heads)
        k_NSD, v_NSV = _rows(k), _rows(v)
        later = torch.full((BLOCK, BLOCK), -torch.inf).triu_(1).repeat(heads // key_heads, 1)
        y_bNXV = q.new_empty(*q_bNXD.shape[:3], v.shape[-1])
        probabilities = []
        for i, q_NXD in enumerate(q_bNXD):
            end = (i + 1) * BLOCK
            p_NXS = q.new_empty(*q_NXD.shape[:2], end)
            torch.baddbmm(p_NXS, q_NXD, k_NSD[:, :end].mT, beta=0, alpha=scale, out=p_NXS)
            p_NXS[..., end - BLOCK :] += later
            torch.softmax(p_NXS, -1, out=p_NXS)
            torch.bmm(p_NXS, v_NSV[:, :end], out=y_bNXV[i])
            probabilities.append(p_NXS)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.scale = scale
        return _unblocked(y_bNXV, heads, key_heads)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        q, k, v, *probabilities = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            y = _plain(q, k, v, ctx.scale)
            return *differentiable_gradients(y, (q, k, v), ctx.needs_input_grad, g), None
        (B, _, heads, _), key_heads, scale = q.shape, k.shape[2], ctx.scale
        q_bNXD, g_bNXV = _blocks(q, key_heads), _blocks(g, key_heads)
        k_NSD, v_NSV = _rows(k), _rows(v)
        dq_bNXD, dk_NSD, dv_NSV = torch.empty_like(q_bNXD), torch.zeros_like(k_NSD), torch.zeros_like(v_NSV)
        for i, p_NXS in enumerate(probabilities):
            end, g_NXV = (i + 1) * BLOCK, g_bNXV[i]
            dv_NSV[:, :end].baddbmm_(p_NXS.mT, g_NXV)
            d_NXS = torch.bmm(g_NXV, v_NSV[:, :end].mT)
            softmax_backward_(d_NXS, p_NXS)
            torch.baddbmm(dq_bNXD[i], d_NXS, k_NSD[:, :end], beta=0, alpha=scale, out=dq_bNXD[i])
            dk_NSD[:, :end].baddbmm_(d_NXS.mT, q_bNXD[i], alpha=scale)
        dk, dv = (t.view(B, key_heads, *t.shape[1:]).transpose(1, 2) for t in (dk_NSD, dv_NSV))
        return _unblocked(dq_bNXD, heads, key_heads), dk, dv, None


def _rows(t: Tensor) -> Tensor:
    """``[B, S, key heads, D] -> [N, S, D]``."""
    return t.transpose(1, 2).flatten(0, 1)


def _blocks(t: Tensor, key_heads: int) -> Tensor:
    """``[B, S, heads, D] -> [blocks, N, X, D]``."""
    B, S, heads, D = t.shape
    t = t.reshape(B, S // BLOCK, BLOCK, key_heads, heads // key_heads, D)
    return t.permute(1, 0, 3, 4, 2, 5).reshape(S // BLOCK, B * key_heads, -1, D)


def _unblocked(t_bNXD: Tensor, heads: int, key_heads: int) -> Tensor:
    """The opposite."""
    b, N, _, D = t_bNXD.shape
    t = t_bNXD.view(b, N // key_heads, key_heads, heads // key_heads, BLOCK, D)
    return t.permute(1, 0, 4, 2, 3, 5).reshape(N // key_heads, b * BLOCK, heads, D)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same in operators that have derivatives of any order."""
    S, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(group, 2) for t in (k, v))
    s_BXSS = torch.einsum("bsxd,btxd->bxst", q, k) * scale
    s_BXSS = s_BXSS.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -torch.inf)
    return torch.einsum("bxst,btxd->bsxd", s_BXSS.softmax(-1), v)
