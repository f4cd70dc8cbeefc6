"""Gradients at the end of an optimizer step: from sums to means, their norm, clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def divide(parameters: Iterable[nn.Parameter], by: Tensor) -> None:
    """Divides every gradient by a 0-d tensor, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(by)


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0-d: the norm of all gradients together; 0 where there are none. Stays on the device."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())


def clip(parameters: Iterable[nn.Parameter], norm: Tensor, most: float) -> None:
    """Scales all gradients by what brings their norm down to ``most``, in place; not at all where it is below.

    Args:
        parameters: whose gradients.
        norm: 0-d, their ``total_norm``.
        most: the norm that is allowed.
    """
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.device, parameter.grad.dtype))


def drop(parameters: Iterable[nn.Parameter]) -> None:
    """Takes every gradient away: an optimizer passes such parameters over, its state and their decay included."""
    for parameter in parameters:
        parameter.grad = None
