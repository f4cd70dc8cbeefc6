"""Operations other than products: tiles, sums by token and their backward, and the activation's backward."""

from __future__ import annotations

import triton
import triton.language as tl

from moekit_dispatchers.triton.kernels.activations import activate, derivative


@triton.jit
def cut(
    end_of,
    tile_expert,
    tile_row,
    num_tiles,
    num_experts,
    HEIGHT: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The expert and the first row of each tile of HEIGHT rows; ``num_experts`` for a surplus tile.

    A tile's expert is the number of experts whose tiles all come before it. One program for BLOCK_X tiles.
    """
    tile = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    expert_of = tl.zeros((BLOCK_X,), dtype=tl.int32)
    before = tl.zeros((BLOCK_X,), dtype=tl.int32)  # tiles of the experts that come before
    counted = 0
    for first in range(0, num_experts, BLOCK_E):
        expert = first + tl.arange(0, BLOCK_E)
        is_expert = expert < num_experts
        end = tl.load(end_of + expert, mask=is_expert, other=0)
        start = tl.load(end_of + expert - 1, mask=is_expert & (expert > 0), other=0)
        tiles = tl.where(is_expert, (end - start + HEIGHT - 1) // HEIGHT, 0)
        last = counted + tl.cumsum(tiles, 0)
        is_past = (last[None, :] <= tile[:, None]) & is_expert[None, :]
        expert_of += tl.sum(is_past.to(tl.int32), axis=1)
        before = tl.maximum(before, tl.max(tl.where(is_past, last[None, :], 0), axis=1))
        counted += tl.sum(tiles)
    is_tile = tile < num_tiles
    start = tl.load(end_of + expert_of - 1, mask=is_tile & (expert_of > 0), other=0)
    tl.store(tile_expert + tile, expert_of.to(tl.int64), mask=is_tile)
    tl.store(tile_row + tile, (start + (tile - before) * HEIGHT).to(tl.int64), mask=is_tile)


@triton.jit
def combine(rows, gate, by_token, start_of, y, width, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """``y[t]``: the sum of token t's rows, with ``GATED`` times their gates; 0 for a token without rows.

    One program for BLOCK columns of one token; it adds the rows in the order of ``by_token``, without atomics, so the
    sum is deterministic.
    """
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_col = cols < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for at in range(tl.load(start_of + token), tl.load(start_of + token + 1)):
        row = tl.load(by_token + at)
        part = tl.load(rows + row * width + cols, mask=is_col, other=0.0).to(tl.float32)
        if GATED:
            part *= tl.load(gate + row)
        total += part
    tl.store(y + token * width + cols, total.to(y.dtype.element_ty), mask=is_col)


@triton.jit
def gated_backward(
    g, y, gate, token_of, last, d_y, d_gate, num_rows, width, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """``d_y[n] = gate[n] · g[token_of[n]]`` and ``d_gate[n] = y[n] · g[token_of[n]]``; 0 for rows from ``last`` on.

    One program computes BLOCK_M rows. ``last`` points to the number of rows with an expert.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_any = rows < num_rows
    is_row = rows < tl.load(last)
    token = tl.load(token_of + rows, mask=is_row, other=0)
    weight = tl.load(gate + rows, mask=is_row, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, width, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        is_col = (cols < width)[None, :]
        at = rows[:, None] * width + cols[None, :]
        is_here = is_row[:, None] & is_col
        d = tl.load(g + token[:, None] * width + cols[None, :], mask=is_here, other=0.0).to(tl.float32)
        total += tl.sum(d * tl.load(y + at, mask=is_here, other=0.0).to(tl.float32), axis=1)
        tl.store(d_y + at, (d * weight[:, None]).to(d_y.dtype.element_ty), mask=is_any[:, None] & is_col)
    tl.store(d_gate + rows, total.to(d_gate.dtype.element_ty), mask=is_any)


@triton.jit
def activation_backward(
    d_acted,
    h,
    kept,
    gate,
    last,
    d_h,
    d_gate,
    hidden,
    GATED: tl.constexpr,
    KEPT: tl.constexpr,
    ACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The activation's backward, from the first product's output.

    With ``KEPT`` the activation's output is read from ``kept``, else recomputed. (With ``GATED`` the activation of the
    gate is computed in any case, because up's gradient needs it.)

    ``d_acted[n]``: in, the gradient of the activation's output before the gate (the output's gradient through the
    second weight); out, the activation's output times the gate, for the second weight's gradient.
    ``d_h[n]``: the gradient of the first product's output. ``d_gate[n]``: ``d_acted · acted``.
    ``last``: points to the number of rows with an expert. One program computes BLOCK_M rows.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < tl.load(last)
    weight = tl.load(gate + rows, mask=is_row, other=0.0)
    width = 2 * hidden if GATED else hidden
    d_weight = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        is_here = is_row[:, None] & (cols < hidden)[None, :]
        small = rows[:, None] * hidden + cols[None, :]
        large = rows[:, None] * width + cols[None, :]
        d = tl.load(d_acted + small, mask=is_here, other=0.0).to(tl.float32)
        first = tl.load(h + large, mask=is_here, other=0.0).to(tl.float32)
        if GATED or not KEPT:
            acted = activate(first, ACT)
        d_first = derivative(first, ACT) * d * weight[:, None]
        if GATED:
            second = tl.load(h + large + hidden, mask=is_here, other=0.0).to(tl.float32)
            d_second = acted * d * weight[:, None]
            tl.store(d_h + large + hidden, d_second.to(d_h.dtype.element_ty), mask=is_here)
            d_first *= second
            if not KEPT:
                acted *= second
        if KEPT:
            acted = tl.load(kept + small, mask=is_here, other=0.0).to(tl.float32)
        tl.store(d_h + large, d_first.to(d_h.dtype.element_ty), mask=is_here)
        d_weight += tl.sum(tl.where(is_here, d * acted, 0.0), axis=1)
        tl.store(d_acted + small, (acted * weight[:, None]).to(d_acted.dtype.element_ty), mask=is_here)
    tl.store(d_gate + rows, d_weight, mask=is_row)
