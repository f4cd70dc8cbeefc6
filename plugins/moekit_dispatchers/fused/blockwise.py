"""Experts computed block by block: an autograd function that reuses a few buffers small enough for the cache.

Shapes: T tokens, N rows sorted by expert, D in, H hidden, O out; r rows of one block. The caller chooses what is saved
for backward; the rest is recomputed, which costs less than writing it to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit_dispatchers.derivatives import forbid_second_derivative
from moekit_dispatchers.fused.activations import activate, activate_backward
from moekit_dispatchers.fused.products import Block, outer_products, products, room
from moekit_dispatchers.fused.thread_pool import Share, run_shares
from moekit_dispatchers.fused.workspace import buffers

BLOCK = 1024
"""Rows of a block: its buffers stay in the cache, and more rows gain nothing. Measured: docs/benchmarks.md."""

NARROW = 1 << 20
"""Elements of tokens and first products that a block may hold, if that allows more rows (narrow experts)."""


class Plan(NamedTuple):
    """How the rows are split; holds no tensor.

    Attributes:
        sizes: rows of each expert, in order.
        shares: the experts of each thread.
        most: the most rows that a block may have.
        activation: its name.
        save: ``all``, ``minimum`` or ``nothing``.
        onednn: whether oneDNN computes the products.
    """

    sizes: list[int]
    shares: list[Share]
    most: int
    activation: str
    save: str
    onednn: bool = False

    def blocks(self, share: Share) -> list[Block]:
        """The blocks of a share, in the order of its rows; experts without rows are in none."""
        blocks: list[Block] = []
        for e in range(share.first, share.last):
            size = self.sizes[e]
            if size and blocks and blocks[-1].first and blocks[-1].rows + size <= self.most:
                experts, sizes, rows, first = blocks.pop()
                blocks.append(Block([*experts, e], [*sizes, size], rows + size, first))
            else:
                parts = (min(self.most, size - at) for at in range(0, size, self.most))
                blocks += [Block([e], [rows], rows, at == 0) for at, rows in enumerate(parts)]
        return blocks

    def buffer_rows(self, blocks: list[Block]) -> int:
        """Rows of buffers that these blocks fit in."""
        most = max((block.rows for block in blocks), default=0)
        return room(most) if self.onednn else most


def most_rows(x_TD: Tensor, w_in_EHD: Tensor) -> int:
    """The most rows that a block may have, for these tokens and weights."""
    return max(BLOCK, NARROW // max(1, x_TD.shape[1] + w_in_EHD.shape[1]))


class BlockwiseExperts(torch.autograd.Function):
    """``y_TO``: for every token the sum over its rows of ``gate · down(act(...))``.

    Differentiable once, by ``x_TD``, ``gate_N`` and both weights.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, gate_N: Tensor, w_in_EHD: Tensor, w_out_EOH: Tensor, token_N: Tensor, plan: Plan
    ) -> Tensor:
        """Computes block by block; saves what ``plan.save`` says."""
        N, (T, D), (out_dim, H) = token_N.shape[0], x_TD.shape, w_out_EOH.shape[1:]
        width, gate_N1 = w_in_EHD.shape[1], gate_N[:, None]
        h_NH = None if plan.save == "nothing" else x_TD.new_empty(N, width)
        act_NH = x_TD.new_empty(N, H) if plan.save == "all" else None
        w_in_eHD, w_out_eOH, onednn = w_in_EHD.unbind(), w_out_EOH.unbind(), plan.onednn

        def compute(share: Share) -> Tensor:
            blocks = plan.blocks(share)
            most, y_TO = plan.buffer_rows(blocks), x_TD.new_zeros(T, out_dim)
            x_rD, act_rX, scaled_rX, y_rO, h_rX = buffers(most, (D, H, H, out_dim, width), x_TD.dtype)
            tokens, gates = (split_blocks(t, share.row, blocks) for t in (token_N, gate_N1))
            kept = (split_or_none(t, share.row, blocks) for t in (h_NH, act_NH))
            for block, token_r, gate_r1, h_r, act_r in zip(blocks, tokens, gates, *kept, strict=True):
                n = block.rows
                torch.index_select(x_TD, 0, token_r, out=x_rD[:n])
                h_r = products(x_rD, w_in_eHD, block, h_rX[:n] if h_r is None else h_r, onednn=onednn)
                act_r = activate(h_r, act_rX[:n] if act_r is None else act_r, plan.activation)
                torch.mul(act_r, gate_r1, out=scaled_rX[:n])
                y_TO.index_add_(0, token_r, products(scaled_rX, w_out_eOH, block, y_rO[:n], onednn=onednn))
            return y_TO

        y_TO = _sum(run_shares(compute, plan.shares))
        ctx.save_for_backward(x_TD, gate_N, w_in_EHD, w_out_EOH, token_N, h_NH, act_NH)
        ctx.plan = plan
        return y_TO

    @staticmethod
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
        """Recomputes what was not saved; computes all gradients of a block while it is in the cache.

        Raises:
            MoekitError: under ``create_graph``.
        """
        forbid_second_derivative("fused")
        x_TD, gate_N, w_in_EHD, w_out_EOH, token_N, h_NH, act_NH = ctx.saved_tensors
        plan: Plan = ctx.plan
        needs_x, needs_gate, needs_in, needs_out = ctx.needs_input_grad[:4]
        (out_dim, H), (width, D) = w_out_EOH.shape[1:], w_in_EHD.shape[1:]
        g_TO, gate_N1 = g_TO.contiguous(), gate_N[:, None]
        dgate_N = torch.zeros_like(gate_N)
        dw_in_EHD = torch.empty_like(w_in_EHD) if needs_in else None
        dw_out_EOH = torch.empty_like(w_out_EOH) if needs_out else None

        w_in_eHD, w_in_eDH, w_out_eHO = w_in_EHD.unbind(), w_in_EHD.mT.unbind(), w_out_EOH.mT.unbind()
        onednn = plan.onednn

        def compute(share: Share) -> Tensor | None:
            blocks = plan.blocks(share)
            most, dx_TD = plan.buffer_rows(blocks), torch.zeros_like(x_TD) if needs_x else None
            x_rD, g_rO, dx_rD, h_rX, dh_rX, act_rX, gate_act_rX, dact_rX, product_rX = buffers(
                most, (D, out_dim, D, width, width, H, H, H, H), x_TD.dtype
            )
            _clear_idle(plan, share, dw_in_EHD, dw_out_EOH)
            tokens, gates, dgates = (split_blocks(t, share.row, blocks) for t in (token_N, gate_N1, dgate_N))
            hs, acts = (split_or_none(t, share.row, blocks) for t in (h_NH, act_NH))
            for block, token_r, gate_r1, dgate_r, h_r, act_r in zip(
                blocks, tokens, gates, dgates, hs, acts, strict=True
            ):
                n = block.rows
                x_r = torch.index_select(x_TD, 0, token_r, out=x_rD[:n])
                g_r = torch.index_select(g_TO, 0, token_r, out=g_rO[:n])
                h_r = products(x_rD, w_in_eHD, block, h_rX[:n], onednn=onednn) if h_r is None else h_r
                spare_r, gate_act_known = act_rX[:n], act_r is None
                if act_r is None:
                    act_r = activate(h_r, spare_r, plan.activation, gate_act_rX[:n])
                dact_r = products(g_rO, w_out_eHO, block, dact_rX[:n], onednn=onednn)
                torch.sum(torch.mul(dact_r, act_r, out=product_rX[:n]), 1, out=dgate_r)
                if dw_out_EOH is not None:
                    scaled_r = torch.mul(act_r, gate_r1, out=spare_r)
                    outer_products(g_r, scaled_r, block, dw_out_EOH, onednn=onednn)
                if needs_x or needs_in:
                    dact_r.mul_(gate_r1)
                    dh_r = activate_backward(dact_r, h_r, gate_act_rX[:n], dh_rX[:n], plan.activation, gate_act_known)
                    if dw_in_EHD is not None:
                        outer_products(dh_r, x_r, block, dw_in_EHD, onednn=onednn)
                    if dx_TD is not None:
                        dx_r = products(dh_rX, w_in_eDH, block, dx_rD[:n], onednn=onednn)
                        dx_TD.index_add_(0, token_r, dx_r)
            return dx_TD

        parts = run_shares(compute, plan.shares)
        dx_TD = _sum([part for part in parts if part is not None]) if needs_x else None
        return dx_TD, dgate_N if needs_gate else None, dw_in_EHD, dw_out_EOH, None, None


def split_blocks(t_N: Tensor, start: int, blocks: list[Block]) -> Sequence[Tensor]:
    """A tensor of rows, from row ``start`` on, split into blocks."""
    sizes = [block.rows for block in blocks]
    return torch.split(t_N[start : start + sum(sizes)], sizes)


def split_or_none(t_N: Tensor | None, start: int, blocks: list[Block]) -> Sequence[Tensor | None]:
    """``split_blocks``; without a tensor, a None for each block."""
    return [None] * len(blocks) if t_N is None else split_blocks(t_N, start, blocks)


def _sum(parts: list[Tensor]) -> Tensor:
    """The sum of tensors of one shape, accumulated in order into the first."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


def _clear_idle(plan: Plan, share: Share, *weights: Tensor | None) -> None:
    """Zeroes the gradients of experts without rows."""
    for e in range(share.first, share.last):
        if not plan.sizes[e]:
            for dw in weights:
                if dw is not None:
                    dw[e].zero_()
