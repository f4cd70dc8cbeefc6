"""Activations and their derivatives with preallocated outputs, with and without a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Activation(NamedTuple):
    """An elementwise function and its derivative, both with a preallocated output.

    Attributes:
        forward: ``(x, out)``.
        backward: ``(gradient, x, out)``: the gradient of x.
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
"""By the names in ``StandardForm.activation``."""


def activate(h_rX: Tensor, out_rH: Tensor, name: str, gate_act_rH: Tensor | None = None) -> Tensor:
    """``act(gate) · up`` if ``h_rX`` is twice as wide as the output, else ``act(h)``.

    Args:
        h_rX: the first product's output.
        out_rH: the output buffer.
        name: of the activation.
        gate_act_rH: a buffer that keeps ``act(gate)``; None: not kept.
    """
    forward, H = ACTIVATIONS[name].forward, out_rH.shape[1]
    if h_rX.shape[1] == H:
        return forward(h_rX, out_rH)
    acted = forward(h_rX[:, :H], out_rH if gate_act_rH is None else gate_act_rH)
    return torch.mul(acted, h_rX[:, H:], out=out_rH)


def activate_backward(
    d_rH: Tensor, h_rX: Tensor, gate_act_rH: Tensor, out_rX: Tensor, name: str, known: bool
) -> Tensor:
    """The gradient of ``h_rX``, in ``out_rX``. Overwrites ``d_rH``.

    Args:
        d_rH: the gradient of the activation's output.
        h_rX: the first product's output.
        gate_act_rH: a buffer for ``act(gate)``, which it already holds if ``known``.
        out_rX: the output buffer.
        name: of the activation.
        known: whether ``act(gate)`` is known.
    """
    (forward, backward), H = ACTIVATIONS[name], d_rH.shape[1]
    if h_rX.shape[1] == H:
        return backward(d_rH, h_rX, out_rX)
    gate_rH, up_rH = h_rX[:, :H], h_rX[:, H:]
    if not known:
        forward(gate_rH, gate_act_rH)
    torch.mul(d_rH, gate_act_rH, out=out_rX[:, H:])
    backward(d_rH.mul_(up_rH), gate_rH, out_rX[:, :H])
    return out_rX
