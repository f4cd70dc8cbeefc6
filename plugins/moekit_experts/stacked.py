"""Shared by all banks of stacked weights: activations by name, parameters, and the initialisation of ``nn.Linear``."""

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
"""Elementwise functions by the names that specs use. ``gelu`` is exact: x·Phi(x)."""


def stacked(*shape: int) -> nn.Parameter:
    """An uninitialised parameter: ``[E, out, in]`` for a weight, ``[E, out]`` for a bias."""
    return nn.Parameter(torch.empty(shape))


def init_as_linear(fan_in: int, *parameters: Tensor | None) -> None:
    """Initialises weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), each expert like an ``nn.Linear``."""
    for parameter in parameters:
        if parameter is not None:
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)
