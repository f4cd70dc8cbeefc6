"""Giving a model other tensors for its own: shapes without storage, or tiny ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def refill(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Puts ``make(parameter)`` in the place of every parameter and ``make(buffer)`` in that of every buffer.

    A parameter that is there twice stays one. (``Module.to_empty`` would make two of it.)
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, make(buffer))
