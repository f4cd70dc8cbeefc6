"""The walk: every expert on its own rows, block by block, through a few small buffers that are used again and again.

Shapes: T tokens, N rows sorted by expert, D in, H hidden, O out; r rows of one block. What is kept for backward is the
caller's choice; the rest is computed again, which costs less than writing it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit.errors import MoekitError

aten = torch.ops.aten

BLOCK = 512  # rows at a time: a block's buffers fit a core's cache; more rows gain nothing


class Activation(NamedTuple):
    """An elementwise function and its derivative, both into a buffer that is given.

    Attributes:
        forward: ``(x, out)``.
        backward: ``(gradient, x, out)``: the gradient with regard to x.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _sigmoid_backward(g: Tensor, x: Tensor, out: Tensor) -> Tensor:
    return aten.sigmoid_backward.grad_input(g, torch.sigmoid(x), grad_input=out)  # type: ignore[no-any-return]


ACTIVATIONS = {
    "silu": Activation(
        lambda x, out: aten.silu.out(x, out=out), lambda g, x, out: aten.silu_backward.grad_input(g, x, grad_input=out)
    ),
    "gelu": Activation(
        lambda x, out: aten.gelu.out(x, out=out), lambda g, x, out: aten.gelu_backward.grad_input(g, x, grad_input=out)
    ),
    "relu": Activation(
        lambda x, out: aten.clamp_min.out(x, 0, out=out),
        lambda g, x, out: aten.threshold_backward.grad_input(g, x, 0, grad_input=out),
    ),
    "sigmoid": Activation(lambda x, out: aten.sigmoid.out(x, out=out), _sigmoid_backward),
}
"""By the names of ``StandardForm.activation``."""


class Plan(NamedTuple):
    """The walk's way: static facts, none of them a tensor.

    Attributes:
        sizes: rows of each expert, in order.
        activation: its name.
        gated: whether the first product holds a gate and up side by side.
        save: ``all``, ``minimum`` or ``nothing``.
    """

    sizes: list[int]
    activation: str
    gated: bool
    save: str

    def blocks(self) -> Iterator[tuple[int, slice, bool]]:
        """Expert, rows, and whether it is the expert's first block; idle experts have none."""
        start = 0
        for e, size in enumerate(self.sizes):
            end = start + size
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
        most, width = plan.rows(), w_in_EHD.shape[1]
        y_TO = x_TD.new_zeros(T, out_dim)
        h_NH = x_TD.new_empty(N if plan.save != "nothing" else most, width)
        act_NH = x_TD.new_empty(N if plan.save == "all" else most, H)
        x_rD, y_rO = x_TD.new_empty(most, D), x_TD.new_empty(most, out_dim)
        scaled_rH = x_TD.new_empty(most, H) if plan.save == "all" else act_NH
        gate_N1 = gate_N[:, None]
        for e, rows, _ in plan.blocks():
            n, token_r = rows.stop - rows.start, token_N[rows]
            h_rH = h_NH[rows] if plan.save != "nothing" else h_NH[:n]
            act_rH = act_NH[rows] if plan.save == "all" else act_NH[:n]
            torch.mm(torch.index_select(x_TD, 0, token_r, out=x_rD[:n]), w_in_EHD[e].t(), out=h_rH)
            _activate(h_rH, act_rH, plan)
            torch.mul(act_rH, gate_N1[rows], out=scaled_rH[:n])
            y_TO.index_add_(0, token_r, torch.mm(scaled_rH[:n], w_out_EOH[e].t(), out=y_rO[:n]))
        kept = {"all": (h_NH, act_NH), "minimum": (h_NH, None), "nothing": (None, None)}[plan.save]
        ctx.save_for_backward(x_TD, gate_N, w_in_EHD, w_out_EOH, token_N, *kept)
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
        g_TO = g_TO.contiguous()
        dx_TD = torch.zeros_like(x_TD) if needs_x else None
        dgate_N = torch.zeros_like(gate_N)
        dw_in_EHD = torch.empty_like(w_in_EHD) if needs_in else None
        dw_out_EOH = torch.empty_like(w_out_EOH) if needs_out else None
        for e, size in enumerate(plan.sizes):
            for dw in (dw_in_EHD, dw_out_EOH):
                if dw is not None and not size:
                    dw[e].zero_()
        x_rD, g_rO, d_rD = (x_TD.new_empty(most, n) for n in (D, out_dim, D))
        h_rX, d_rX = x_TD.new_empty(most, width), x_TD.new_empty(most, width)
        act_rX, gate_act_rX, d_act_rX = (x_TD.new_empty(most, H) for _ in range(3))
        gate_N1 = gate_N[:, None]
        for e, rows, first in plan.blocks():
            n, token_r, gate_r1 = rows.stop - rows.start, token_N[rows], gate_N1[rows]
            x_r = torch.index_select(x_TD, 0, token_r, out=x_rD[:n])
            g_r = torch.index_select(g_TO, 0, token_r, out=g_rO[:n])
            h_r = torch.mm(x_r, w_in_EHD[e].t(), out=h_rX[:n]) if h_NH is None else h_NH[rows]
            act_r = _activate(h_r, act_rX[:n], plan, gate_act_rX[:n]) if act_NH is None else act_NH[rows]
            d_act_r = torch.mm(g_r, w_out_EOH[e], out=d_act_rX[:n])
            torch.linalg.vecdot(d_act_r, act_r, out=dgate_N[rows])
            if dw_out_EOH is not None:
                scaled_r = torch.mul(act_r, gate_r1, out=act_rX[:n])
                _add_product(g_r.t(), scaled_r, dw_out_EOH[e], first)
            if needs_x or needs_in:
                d_r = _activate_backward(d_act_r.mul_(gate_r1), h_r, gate_act_rX[:n], d_rX[:n], plan, act_NH is None)
                if dw_in_EHD is not None:
                    _add_product(d_r.t(), x_r, dw_in_EHD[e], first)
                if dx_TD is not None:
                    dx_TD.index_add_(0, token_r, torch.mm(d_r, w_in_EHD[e], out=d_rD[:n]))
        return dx_TD, dgate_N if needs_gate else None, dw_in_EHD, dw_out_EOH, None, None


def _activate(h_rX: Tensor, out_rH: Tensor, plan: Plan, gate_act_rH: Tensor | None = None) -> Tensor:
    """``act(gate) · up`` or ``act(h)``; with ``gate_act_rH``, ``act(gate)`` is kept there."""
    forward = ACTIVATIONS[plan.activation].forward
    if not plan.gated:
        return forward(h_rX, out_rH)
    H = out_rH.shape[1]
    acted = forward(h_rX[:, :H], out_rH if gate_act_rH is None else gate_act_rH)
    return torch.mul(acted, h_rX[:, H:], out=out_rH)


def _activate_backward(
    d_rH: Tensor, h_rX: Tensor, gate_act_rH: Tensor, out_rX: Tensor, plan: Plan, kept: bool
) -> Tensor:
    """The gradient with regard to the first product's output, in ``out_rX``; ``d_rH`` is spoilt.

    Args:
        d_rH: the gradient with regard to the activation's output.
        h_rX: the first product's output.
        gate_act_rH: a buffer; with ``kept`` it holds ``act(gate)``.
        out_rX: where the answer goes.
        plan: what was computed.
        kept: see above.
    """
    forward, backward = ACTIVATIONS[plan.activation]
    if not plan.gated:
        return backward(d_rH, h_rX, out_rX)
    H = d_rH.shape[1]
    gate_rH, up_rH = h_rX[:, :H], h_rX[:, H:]
    if not kept:
        forward(gate_rH, gate_act_rH)
    torch.mul(d_rH, gate_act_rH, out=out_rX[:, H:])
    backward(d_rH.mul_(up_rH), gate_rH, out_rX[:, :H])
    return out_rX


def _add_product(a: Tensor, b: Tensor, out: Tensor, first: bool) -> None:
    """``out = a b``, or ``out += a b``."""
    if first:
        torch.mm(a, b, out=out)
    else:
        out.addmm_(a, b)
