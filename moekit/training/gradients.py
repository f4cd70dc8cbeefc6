"""Gradients at the end of an optimizer step, in any layout: from sums to means, clipping, leaving them out."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from moekit.parallel.norm import total_norm
from moekit.parallel.sharding import local

__all__ = ["clip", "clip_values", "divide", "drop", "total_norm"]


def divide(parameters: Iterable[nn.Parameter], by: Tensor) -> None:
    """Divides every gradient by a 0-d tensor, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).div_(by)


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
            held = local(parameter.grad)
            held.mul_(factor.to(held.device, held.dtype))


def clip_values(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Brings every number of every gradient into ``[-most, most]``, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).clamp_(-most, most)


def drop(parameters: Iterable[nn.Parameter]) -> None:
    """Takes every gradient away: an optimizer passes such parameters over, its state and their decay included."""
    for parameter in parameters:
        parameter.grad = None
