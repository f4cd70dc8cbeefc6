"""Derivatives of a backward pass that has none of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    y: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], g: Tensor
) -> list[Tensor | None]:
    """The gradients of ``y`` by those inputs that need one, which can be differentiated again; None for the others.

    Args:
        y: computed from the inputs by operators that have derivatives of any order.
        inputs: of a function of autograd.
        needed: ``ctx.needs_input_grad``, which may be longer.
        g: the gradient of the output.
    """
    wanted = [t for t, needs in zip(inputs, needed, strict=False) if needs]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if needs else None for _, needs in zip(inputs, needed, strict=False)]
