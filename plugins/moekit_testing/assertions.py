"""Assertions whose failures say what was found and what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CheckFailure(AssertionError):
    """A component breaks a promise of its kind or of its claims. The message says what was found and expected."""


def require(condition: bool, *, found: str, expected: str) -> None:
    """Fails unless ``condition`` holds.

    Raises:
        CheckFailure: it does not hold.
    """
    __tracebackhide__ = True
    if not condition:
        raise CheckFailure(f"  found     {found}\n  expected  {expected}")


def require_equal(found: Tensor, expected: Tensor, what: str, *, tolerance: float = 0.0) -> None:
    """Fails unless two tensors agree in shape and in value, to ``tolerance`` relative to their size. NaN equals NaN."""
    __tracebackhide__ = True
    require(
        found.shape == expected.shape,
        found=f"{what} has shape {tuple(found.shape)}",
        expected=f"{tuple(expected.shape)}",
    )
    if found.numel() == 0:
        return
    a, b = found.detach().double(), expected.detach().double()
    error = (a - b).abs()
    error = error.where(~(a == b) & ~(a.isnan() & b.isnan()), 0.0).nan_to_num(nan=float("inf"))
    size = b.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    worst = error.max().item()
    at = tuple(torch.unravel_index(error.argmax(), error.shape)) if error.ndim else ()
    where = " at [" + ", ".join(str(int(i)) for i in at) + "]" if at else ""
    require(
        worst <= tolerance * max(size, 1.0),
        found=f"{what}: {a[at].item():.9g}{where}, differs by {worst:.3g}",
        expected=f"{b[at].item():.9g}" + (f", to {tolerance:.0e} relative" if tolerance else ", exactly"),
    )


def require_finite(tensor: Tensor | None, what: str) -> None:
    """Fails if a tensor is missing or contains NaN or infinity.

    Raises:
        CheckFailure: it is or does.
    """
    __tracebackhide__ = True
    if tensor is None:
        raise CheckFailure(f"  found     {what} is None\n  expected  a tensor")
    bad = int((~torch.isfinite(tensor)).sum())
    require(bad == 0, found=f"{bad} of {tensor.numel()} values of {what} are NaN or infinite", expected="finite values")


def state_of(module: nn.Module) -> dict[str, Any]:
    """All state of a module: parameters, buffers, and plain attributes with values, those that begin with ``_`` too."""
    state: dict[str, Any] = {}
    of_torch = {"training", *vars(nn.Module())}
    for path, part in module.named_modules():
        own: dict[str, Any] = dict([*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)])
        own |= {k: v for k, v in vars(part).items() if k not in of_torch}
        for name, value in own.items():
            key = f"{path}.{name}".lstrip(".")
            if isinstance(value, Tensor):
                state[key] = value.detach().clone()
            elif isinstance(value, int | float | str | bool | None | list | dict | set | tuple):
                state[key] = repr(value)
    return state


def require_same_state(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Fails, naming the attribute, if ``what`` changed a module's state."""
    __tracebackhide__ = True
    for name in [*before, *(n for n in after if n not in before)]:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            same = old.shape == new.shape and torch.equal(old.nan_to_num(), new.nan_to_num())
        else:
            same = type(old) is type(new) and old == new
        require(same, found=f"{what} changed '{name}'", expected="no change")
