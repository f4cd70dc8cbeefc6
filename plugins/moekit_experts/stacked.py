"""What every bank over stacked weights needs: activations by name, and weights drawn as ``nn.Linear`` draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}
"""Elementwise functions by the name a spec gives. ``gelu`` is the exact one, x·Phi(x)."""


def stacked(*shape: int) -> nn.Parameter:
    """An unfilled parameter over experts: ``[E, out, in]`` for a weight, ``[E, out]`` for a bias."""
    return nn.Parameter(torch.empty(shape))


def draw_uniform(fan_in: int, *parameters: Tensor | None) -> None:
    """Fills weights and biases with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), each expert as an ``nn.Linear`` would be."""
    for parameter in parameters:
        if parameter is not None:
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)
