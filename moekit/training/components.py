"""What the components of a run return, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moekit.contracts import LossSum, ModelOutput
from moekit.contracts.returned import reject, shape_of
from moekit.errors import PluginError
from moekit.moe_layer import MoELayer
from moekit.registry import current
from moekit.spec.fields import Spec


@contextmanager
def values_checked(model: nn.Module) -> Iterator[None]:
    """Within it, the mixture layers of a model also check the values of their routings."""
    before = {module: module.check_values for module in model.modules() if isinstance(module, MoELayer)}
    for layer in before:
        layer.check_values = True
    try:
        yield
    finally:
        for layer, was in before.items():
            layer.check_values = was


def check_output(model: object, output: Any) -> ModelOutput:
    """What a model returned, checked.

    Raises:
        PluginError: it is not a ``ModelOutput`` with a float tensor ``y``.
    """
    if not isinstance(output, ModelOutput):
        reject(model, "a ModelOutput", type(output).__name__)
    y: object = output.y
    if not isinstance(y, Tensor) or not y.is_floating_point():
        reject(model, "a ModelOutput whose y is a float tensor", f"y = {type(y).__name__}")
    return output


def check_loss(objective: object, loss: Any) -> None:
    """Checks what an objective returned.

    Raises:
        PluginError: it is not a ``LossSum`` of 0-d tensors.
    """
    if not isinstance(loss, LossSum):
        reject(objective, "a LossSum(total=..., count=...)", type(loss).__name__)
    sums = {"total": loss.total, "count": loss.count}
    for name, pair in loss.metrics.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            reject(
                objective, "metrics of two 0-d tensors each, a sum and its denominator", f"metrics[{name!r}] = {pair!r}"
            )
        sums |= {f"metrics[{name!r}][{i}]": each for i, each in enumerate(pair)}
    for name, value in sums.items():
        if not isinstance(value, Tensor) or value.ndim:
            reject(objective, "a LossSum of 0-d tensors", f"{name} = {shape_of(value)}")


def check_optimizer(spec: Spec, optimizer: Any) -> None:
    """Checks what a recipe's optimizer was built into.

    Raises:
        PluginError: it is not a ``torch.optim.Optimizer``.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PluginError(f"{current().component_of(spec)} returned {optimizer!r}\n  expected a torch.optim.Optimizer")


def checked_schedule(spec: Spec, factor: Any) -> Callable[[int], float]:
    """A recipe's schedule, which checks each factor that it returns.

    Raises:
        PluginError: it is not a function; or, when called, it does not return a finite number of at least 0.
    """
    name = str(current().component_of(spec))
    if not callable(factor):
        raise PluginError(f"{name} returned {factor!r}\n  expected a function from a step to a factor of the rate")

    def checked(step: int) -> float:
        found = factor(step)
        number = not isinstance(found, bool) and (isinstance(found, int | float) or getattr(found, "ndim", None) == 0)
        if not number or not math.isfinite(found) or found < 0:
            raise PluginError(f"{name} returned {found!r} for step {step}\n  expected a finite number of at least 0")
        return float(found)

    return checked
