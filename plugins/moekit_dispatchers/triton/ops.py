"""All experts of a layer as one ``torch.library`` operator; its derivative is another.

``torch.compile`` treats each as one call with static shapes. Triton is imported when one of them runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moekit.errors import MoekitError

# ``moekit_dispatchers.triton.launch`` documents the arguments, under the same names.


@torch.library.custom_op("moekit::triton_experts", mutates_args=())
def triton_experts(
    x_TD: Tensor,
    gate_N: Tensor,
    w_in_EXD: Tensor,
    w_out_EOH: Tensor,
    end_E: Tensor,
    token_N: Tensor,
    by_token_N: Tensor,
    start_T: Tensor,
    activation: str,
    save: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y_TO``; and for backward alone the outputs of the first product and of the activation.

    A tensor that ``save`` does not keep is empty.
    """
    from moekit_dispatchers.triton import launch

    route = launch.Route(end_E, token_N, by_token_N, start_T)
    return launch.forward(x_TD.contiguous(), gate_N.contiguous(), w_in_EXD, w_out_EOH, route, activation, save)


@triton_experts.register_fake
def _(x_TD: Tensor, gate_N: Tensor, w_in_EXD: Tensor, w_out_EOH: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    N, (_, out_dim, H), save = gate_N.shape[0], w_out_EOH.shape, rest[-1]
    y_TO = x_TD.new_empty(x_TD.shape[0], out_dim)
    h_NX = x_TD.new_empty(N if save != "nothing" else 0, w_in_EXD.shape[1])
    return y_TO, h_NX, x_TD.new_empty(N if save == "all" else 0, H)


@torch.library.custom_op("moekit::triton_experts_backward", mutates_args=())
def triton_experts_backward(
    g_TO: Tensor,
    x_TD: Tensor,
    gate_N: Tensor,
    w_in_EXD: Tensor,
    w_out_EOH: Tensor,
    h_NX: Tensor,
    acted_NH: Tensor,
    end_E: Tensor,
    token_N: Tensor,
    by_token_N: Tensor,
    start_T: Tensor,
    activation: str,
    save: str,
    needs_x: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of tokens, gates, and both weights; empty if not needed, except that of the gates."""
    from moekit_dispatchers.triton import launch

    return launch.backward(
        g_TO,
        x_TD.contiguous(),
        gate_N.contiguous(),
        w_in_EXD,
        w_out_EOH,
        h_NX,
        acted_NH,
        launch.Route(end_E, token_N, by_token_N, start_T),
        activation,
        save,
        (needs_x, needs_in, needs_out),
    )


@triton_experts_backward.register_fake
def _(
    g_TO: Tensor, x_TD: Tensor, gate_N: Tensor, w_in_EXD: Tensor, w_out_EOH: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs_x, needs_in, needs_out = rest[-3:]
    needed = ((x_TD, needs_x), (gate_N, True), (w_in_EXD, needs_in), (w_out_EOH, needs_out))
    dx_TD, d_gate_N, dw_in_EXD, dw_out_EOH = (x.new_empty(x.shape if need else (0,)) for x, need in needed)
    return dx_TD, d_gate_N, dw_in_EXD, dw_out_EOH


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, activation, save = inputs
    kept = output[1:]
    ctx.save_for_backward(*tensors[:4], *kept, *tensors[4:])
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)  # do not allocate zero gradients for them
    ctx.options = (activation, save)


def _backward(ctx: Any, g_TO: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    needs_x, needs_gate, needs_in, needs_out = ctx.needs_input_grad[:4]
    dx_TD, d_gate_N, dw_in_EXD, dw_out_EOH = triton_experts_backward(
        g_TO, *ctx.saved_tensors, *ctx.options, needs_x, needs_in, needs_out
    )
    gradients = ((dx_TD, needs_x), (d_gate_N, needs_gate), (dw_in_EXD, needs_in), (dw_out_EOH, needs_out))
    return *(gradient if need else None for gradient, need in gradients), *(None,) * 6


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    """Rejects a second derivative, which would be missing silently.

    Raises:
        MoekitError: always.
    """
    raise MoekitError("the dispatcher 'triton' is differentiable once; 'grouped' has derivatives of any order")


triton_experts.register_autograd(_backward, setup_context=_save)
triton_experts_backward.register_autograd(_refuse)
