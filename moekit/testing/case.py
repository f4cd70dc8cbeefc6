"""Case: one component with one example of its options, and how the kit builds it and reports on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moekit.component import Component
from moekit.contracts import LayerDims
from moekit.seeds import seed_torch
from moekit.spec.fields import Spec
from moekit.spec.kinds import ExpertSpec

DIMS = {
    "router": LayerDims(dim=8, num_experts=16),
    "expert": LayerDims(dim=6, num_experts=3, out_dim=5),
    "dispatcher": LayerDims(dim=4, num_experts=8, out_dim=3),
    "balancer": LayerDims(dim=4, num_experts=8),
}
"""The sizes of the layer that the kit builds a part for: small, and with unequal widths where a mix-up would show."""

ATTENTION_DIM = 64


class CheckFailure(AssertionError):
    """A component does not do what its kind or its claims promise. The message says what, found and expected."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One component under test, with one example of its options.

    Args:
        component: what is tested.
        spec: its options.
        dims: sizes of the layer it is built for.
        label: how tests and messages name it: ``router/mine``, or ``router/mine.2`` for a second example.
    """

    component: Component
    spec: Spec
    dims: LayerDims
    label: str

    @property
    def kind(self) -> str:
        """The component's kind."""
        return self.component.kind

    def build_raw(self, seed: int = 0, *, spec: Spec | None = None, dims: LayerDims | None = None) -> Any:
        """What the component's target builds, as it comes."""
        spec = spec or self.spec
        context: tuple[Any, ...] = ()
        if self.kind in DIMS:
            context = (dims or self.dims,)
        elif self.kind == "attention":
            context = (ATTENTION_DIM,)
        with seeded(seed):
            return self.component.load()(spec, *context)

    def build(self, seed: int = 0, *, spec: Spec | None = None, dims: LayerDims | None = None) -> nn.Module:
        """The module, in training mode, with every weight drawn anew so that nothing is hidden by a zero or a one."""
        module: nn.Module = self.build_raw(seed, spec=spec, dims=dims)
        with seeded(seed + 1), torch.no_grad():
            for parameter in module.parameters():
                draw = torch.randn_like(parameter)
                parameter.copy_(0.5 * draw if parameter.ndim >= 2 else parameter + 0.1 * draw)
        return module

    def with_experts(self, count: int) -> Case:
        """The same case for another number of experts."""
        dims = replace(self.dims, num_experts=count)
        spec = replace(self.spec, count=count) if isinstance(self.spec, ExpertSpec) else self.spec
        return replace(self, spec=spec, dims=dims)


def require(condition: bool, *, found: str, expected: str) -> None:
    """Fails the check, in words, unless ``condition`` holds."""
    __tracebackhide__ = True
    if not condition:
        raise CheckFailure(f"  found     {found}\n  expected  {expected}")


def require_equal(found: Tensor, expected: Tensor, what: str, *, tolerance: float = 0.0) -> None:
    """Fails the check unless two tensors agree in shape and, to ``tolerance`` relative to their size, in value."""
    __tracebackhide__ = True
    require(
        found.shape == expected.shape,
        found=f"{what} has shape {tuple(found.shape)}",
        expected=f"{tuple(expected.shape)}",
    )
    if found.numel() == 0:
        return
    a, b = found.detach().double(), expected.detach().double()
    apart = (a - b).abs()
    apart = apart.where(~(a == b) & ~(a.isnan() & b.isnan()), 0.0).nan_to_num(nan=float("inf"))
    size = b.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    worst = apart.max().item()
    at = tuple(torch.unravel_index(apart.argmax(), apart.shape)) if apart.ndim else ()
    where = " at [" + ", ".join(str(int(i)) for i in at) + "]" if at else ""
    require(
        worst <= tolerance * max(size, 1.0),
        found=f"{what}: {a[at].item():.9g}{where}, apart by {worst:.3g}",
        expected=f"{b[at].item():.9g}" + (f", to {tolerance:.0e} relative" if tolerance else ", exactly"),
    )


def require_finite(tensor: Tensor | None, what: str) -> None:
    """Fails the check when a tensor is missing or holds NaN or infinity."""
    __tracebackhide__ = True
    if tensor is None:
        raise CheckFailure(f"  found     {what} is None\n  expected  a tensor")
    bad = int((~torch.isfinite(tensor)).sum())
    require(bad == 0, found=f"{bad} of {tensor.numel()} values of {what} are NaN or infinite", expected="finite values")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws inside are those of ``seed``; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws from N(0, 1), the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors_in(value: Any) -> dict[str, Tensor]:
    """The tensors among a dataclass's fields, by name."""
    if not is_dataclass(value):
        return {}
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything a module could remember in: parameters, buffers, and plain attributes with values."""
    state: dict[str, Any] = {}
    for path, part in module.named_modules():
        own: dict[str, Any] = dict([*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)])
        own |= {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
        for name, value in own.items():
            key = f"{path}.{name}".lstrip(".")
            if isinstance(value, Tensor):
                state[key] = value.detach().clone()
            elif isinstance(value, int | float | str | bool | None | list | dict | set | tuple):
                state[key] = repr(value)
    return state


def require_same_state(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Fails the check, naming the attribute, when ``what`` changed a module's state."""
    __tracebackhide__ = True
    for name in [*before, *(n for n in after if n not in before)]:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            same = old.shape == new.shape and torch.equal(old.nan_to_num(), new.nan_to_num())
        else:
            same = type(old) is type(new) and old == new
        require(same, found=f"{what} changed '{name}'", expected="no change")


Check = Callable[[Case], None]
