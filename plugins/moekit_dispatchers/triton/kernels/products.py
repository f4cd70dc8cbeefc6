"""Grouped products: each row through its own expert's weight, and each expert's sum of outer products."""

from __future__ import annotations

import triton
import triton.language as tl

from moekit_dispatchers.triton.kernels.activations import activate


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """``total + a b``, in fp32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def linear(
    x,
    token_of,
    w,
    y,
    tile_expert,
    tile_row,
    end_of,
    num_experts,
    width_in,
    width_out,
    x_row,
    w_expert,
    w_out,
    w_in,
    GATHER: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``y[n] = w[expert of n] x[source of n]``; the source is ``token_of[n]`` with ``GATHER``, else n.

    One program computes BLOCK_N columns of a tile of rows. Programs of one tile are neighbours, so that its rows of x
    are read from memory once. ``w`` may be any view, transposed ones included; x and y have unit stride along rows.
    """
    blocks = tl.cdiv(width_out, BLOCK_N)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_expert + tile).to(tl.int64)  # 64 bits: E·H·D outgrows 32
    if expert >= num_experts:
        return
    rows = tl.load(tile_row + tile).to(tl.int64) + tl.arange(0, BLOCK_M)
    is_row = rows < tl.load(end_of + expert)
    cols = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_col = cols < width_out
    source = rows
    if GATHER:
        source = tl.load(token_of + rows, mask=is_row, other=0)
    ks = tl.arange(0, BLOCK_K)
    x_at = x + source[:, None] * x_row + ks[None, :]
    w_at = w + expert * w_expert + ks[:, None] * w_in + cols[None, :] * w_out
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, width_in, BLOCK_K):
        is_k = ks < width_in - k
        a = tl.load(x_at, mask=is_row[:, None] & is_k[None, :], other=0.0)
        b = tl.load(w_at, mask=is_k[:, None] & is_col[None, :], other=0.0)
        total = multiply(a, b, total, PRECISION, UPCAST)
        x_at += BLOCK_K
        w_at += BLOCK_K * w_in
    y_at = y + rows[:, None] * width_out + cols[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=is_row[:, None] & is_col[None, :])


@triton.jit
def linear_activated(
    x,
    token_of,
    w,
    h,
    acted,
    tile_expert,
    tile_row,
    end_of,
    num_experts,
    width_in,
    hidden,
    w_expert,
    w_out,
    w_in,
    GATED: tl.constexpr,
    KEEP: tl.constexpr,
    ACT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``h[n] = w[expert of n] x[token_of[n]]`` and, from registers, ``acted[n] = act(gate) · up`` or ``act(h)``.

    With ``GATED``, h has the gate in its first ``hidden`` columns and up in the rest; one program computes both.
    Without ``KEEP`` h is not written.
    """
    blocks = tl.cdiv(hidden, BLOCK_N)
    tile = tl.program_id(0) // blocks
    expert = tl.load(tile_expert + tile).to(tl.int64)
    if expert >= num_experts:
        return
    rows = tl.load(tile_row + tile).to(tl.int64) + tl.arange(0, BLOCK_M)
    is_row = rows < tl.load(end_of + expert)
    cols = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_col = cols < hidden
    source = tl.load(token_of + rows, mask=is_row, other=0)
    ks = tl.arange(0, BLOCK_K)
    x_at = x + source[:, None] * width_in + ks[None, :]
    w_at = w + expert * w_expert + ks[:, None] * w_in + cols[None, :] * w_out
    first = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, width_in, BLOCK_K):
        is_k = ks < width_in - k
        is_weight = is_k[:, None] & is_col[None, :]
        a = tl.load(x_at, mask=is_row[:, None] & is_k[None, :], other=0.0)
        first = multiply(a, tl.load(w_at, mask=is_weight, other=0.0), first, PRECISION, UPCAST)
        if GATED:
            b = tl.load(w_at + hidden * w_out, mask=is_weight, other=0.0)
            second = multiply(a, b, second, PRECISION, UPCAST)
        x_at += BLOCK_K
        w_at += BLOCK_K * w_in
    is_here = is_row[:, None] & is_col[None, :]
    kind = acted.dtype.element_ty
    first = first.to(kind)
    second = second.to(kind)
    if KEEP:
        width = 2 * hidden if GATED else hidden
        h_at = h + rows[:, None] * width + cols[None, :]
        tl.store(h_at, first, mask=is_here)
        if GATED:
            tl.store(h_at + hidden, second, mask=is_here)
    out = activate(first.to(tl.float32), ACT)  # of the rounded value that backward reads
    if GATED:
        out *= second.to(tl.float32)
    tl.store(acted + rows[:, None] * hidden + cols[None, :], out.to(kind), mask=is_here)


@triton.jit
def outer(
    a,
    b,
    token_of,
    dw,
    end_of,
    width_a,
    width_b,
    GATHER_A: tl.constexpr,
    GATHER_B: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``dw[e]``: the sum over the rows n of expert e of ``a[n]`` outer ``b[n]``; 0 for an expert without rows.

    With ``GATHER_A`` (``GATHER_B``) it is ``a[token_of[n]]`` (``b``). One program for a block of one expert's matrix;
    it adds all rows of the expert in order, so the sum is deterministic.
    """
    blocks_a = tl.cdiv(width_a, BLOCK_M)
    blocks_b = tl.cdiv(width_b, BLOCK_N)
    expert = (tl.program_id(0) // (blocks_a * blocks_b)).to(tl.int64)
    block = tl.program_id(0) % (blocks_a * blocks_b)
    cols_a = (block // blocks_b) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols_b = (block % blocks_b) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_a = cols_a < width_a
    is_b = cols_b < width_b
    start = tl.load(end_of + expert - 1, mask=expert > 0, other=0)
    end = tl.load(end_of + expert)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for at in range(start, end, BLOCK_K):
        rows = at + tl.arange(0, BLOCK_K)
        is_row = rows < end
        rows = rows.to(tl.int64)
        from_a = rows
        from_b = rows
        if GATHER_A:
            from_a = tl.load(token_of + rows, mask=is_row, other=0)
        if GATHER_B:
            from_b = tl.load(token_of + rows, mask=is_row, other=0)
        left = tl.load(a + cols_a[:, None] + from_a[None, :] * width_a, mask=is_a[:, None] & is_row[None, :], other=0.0)
        right = tl.load(
            b + from_b[:, None] * width_b + cols_b[None, :], mask=is_row[:, None] & is_b[None, :], other=0.0
        )
        total = multiply(left, right, total, PRECISION, UPCAST)
    place = dw + expert * width_a * width_b + cols_a[:, None] * width_b + cols_b[None, :]
    tl.store(place, total.to(dw.dtype.element_ty), mask=is_a[:, None] & is_b[None, :])
