"""The walk: every expert on its own rows, block by block, through a few small buffers that are used again and again.

Shapes: T tokens, N rows sorted by expert, D in, H hidden, O out; r rows of one block. What is kept for backward is the
caller's choice; the rest is computed again, which costs less than writing it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit.errors import MoekitError
from moekit_dispatchers.fused.activations import activate, activate_backward
from moekit_dispatchers.fused.crew import Share, side_by_side

BLOCK = 512  # rows at a time: a block's buffers fit a core's cache, and more rows gain nothing


class Plan(NamedTuple):
    """The walk's way: static facts, none of them a tensor.

    Attributes:
        sizes: rows of each expert, in order.
        among: who walks over which experts.
        activation: its name.
        save: ``all``, ``minimum`` or ``nothing``.
    """

    sizes: list[int]
    among: list[Share]
    activation: str
    save: str

    def blocks(self, share: Share) -> Iterator[tuple[int, slice, bool]]:
        """Expert, rows, and whether it is the expert's first block; idle experts have none."""
        start = share.row
        for e in range(share.first, share.last):
            end = start + self.sizes[e]
            for at in range(start, end, BLOCK):
                yield e, slice(at, min(at + BLOCK, end)), at == start
            start = end

    def rows(self) -> int:
        """The most rows that a block has."""
        return min(BLOCK, max(self.sizes, default=0))


class Walk(torch.autograd.Function):
    """``y_TO``: for every token the sum over its rows of ``gate · down(act(...))``.

    Differentiable once, with regard to ``x_TD``, ``gate_N`` and both weights.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, gate_N: Tensor, w_in_EHD: Tensor, w_out_EOH: Tensor, token_N: Tensor, plan: Plan
    ) -> Tensor:
        """Walks forward."""
        N, (T, D), (out_dim, H) = token_N.shape[0], x_TD.shape, w_out_EOH.shape[1:]
        most, width, gate_N1 = plan.rows(), w_in_EHD.shape[1], gate_N[:, None]
        h_NH = None if plan.save == "nothing" else x_TD.new_empty(N, width)
        act_NH = x_TD.new_empty(N, H) if plan.save == "all" else None

        def walk(share: Share) -> Tensor:
            y_TO = x_TD.new_zeros(T, out_dim)
            x_rD, h_rX, act_rX, scaled_rX, y_rO = (x_TD.new_empty(most, n) for n in (D, width, H, H, out_dim))
            for e, rows, _ in plan.blocks(share):
                n, token_r = rows.stop - rows.start, token_N[rows]
                x_r = torch.index_select(x_TD, 0, token_r, out=x_rD[:n])
                h_r = torch.mm(x_r, w_in_EHD[e].t(), out=h_rX[:n] if h_NH is None else h_NH[rows])
                act_r = activate(h_r, act_rX[:n] if act_NH is None else act_NH[rows], plan.activation)
                scaled_r = torch.mul(act_r, gate_N1[rows], out=scaled_rX[:n])
                y_TO.index_add_(0, token_r, torch.mm(scaled_r, w_out_EOH[e].t(), out=y_rO[:n]))
            return y_TO

        y_TO = _sum(side_by_side(walk, plan.among))
        ctx.save_for_backward(x_TD, gate_N, w_in_EHD, w_out_EOH, token_N, h_NH, act_NH)
        ctx.plan = plan
        return y_TO

    @staticmethod
    def backward(ctx: Any, g_TO: Tensor) -> tuple[Tensor | None, ...]:
        """Walks again: activations anew, all gradients of a block while it is in the cache.

        Raises:
            MoekitError: under ``create_graph``; a second derivative would be left out in silence.
        """
        if torch.is_grad_enabled():
            raise MoekitError(
                "the dispatcher 'fused' is differentiable once, and create_graph=True asks for more; "
                "'grouped' has derivatives of any order"
            )
        x_TD, gate_N, w_in_EHD, w_out_EOH, token_N, h_NH, act_NH = ctx.saved_tensors
        plan: Plan = ctx.plan
        needs_x, needs_gate, needs_in, needs_out = ctx.needs_input_grad[:4]
        most, (out_dim, H), (width, D) = plan.rows(), w_out_EOH.shape[1:], w_in_EHD.shape[1:]
        g_TO, gate_N1 = g_TO.contiguous(), gate_N[:, None]
        dgate_N = torch.zeros_like(gate_N)
        dw_in_EHD = torch.empty_like(w_in_EHD) if needs_in else None
        dw_out_EOH = torch.empty_like(w_out_EOH) if needs_out else None

        def walk(share: Share) -> Tensor | None:
            dx_TD = torch.zeros_like(x_TD) if needs_x else None
            x_rD, g_rO, dx_rD = (x_TD.new_empty(most, n) for n in (D, out_dim, D))
            h_rX, dh_rX = (x_TD.new_empty(most, width) for _ in range(2))
            act_rX, gate_act_rX, dact_rX = (x_TD.new_empty(most, H) for _ in range(3))
            _clear_idle(plan, share, dw_in_EHD, dw_out_EOH)
            for e, rows, first in plan.blocks(share):
                n, token_r, gate_r1 = rows.stop - rows.start, token_N[rows], gate_N1[rows]
                x_r = torch.index_select(x_TD, 0, token_r, out=x_rD[:n])
                g_r = torch.index_select(g_TO, 0, token_r, out=g_rO[:n])
                h_r = torch.mm(x_r, w_in_EHD[e].t(), out=h_rX[:n]) if h_NH is None else h_NH[rows]
                gate_act_r, kept = gate_act_rX[:n], act_NH is None
                act_r = activate(h_r, act_rX[:n], plan.activation, gate_act_r) if act_NH is None else act_NH[rows]
                dact_r = torch.mm(g_r, w_out_EOH[e], out=dact_rX[:n])
                torch.linalg.vecdot(dact_r, act_r, out=dgate_N[rows])
                if dw_out_EOH is not None:
                    _add_product(g_r.t(), torch.mul(act_r, gate_r1, out=act_rX[:n]), dw_out_EOH[e], first)
                if needs_x or needs_in:
                    dact_r.mul_(gate_r1)
                    dh_r = activate_backward(dact_r, h_r, gate_act_r, dh_rX[:n], plan.activation, kept)
                    if dw_in_EHD is not None:
                        _add_product(dh_r.t(), x_r, dw_in_EHD[e], first)
                    if dx_TD is not None:
                        dx_TD.index_add_(0, token_r, torch.mm(dh_r, w_in_EHD[e], out=dx_rD[:n]))
            return dx_TD

        parts = side_by_side(walk, plan.among)
        dx_TD = _sum([part for part in parts if part is not None]) if needs_x else None
        return dx_TD, dgate_N if needs_gate else None, dw_in_EHD, dw_out_EOH, None, None


def _sum(parts: list[Tensor]) -> Tensor:
    """The sum of equal shapes, into the first of them, in their order."""
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


def _clear_idle(plan: Plan, share: Share, *weights: Tensor | None) -> None:
    """Zeros for the gradients of experts without rows."""
    for e in range(share.first, share.last):
        if not plan.sizes[e]:
            for dw in weights:
                if dw is not None:
                    dw[e].zero_()


def _add_product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
    """``out = a b``, or ``out += a b``."""
    if first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)
