"""Case: one component with one example of its options, and how the kit builds it."""

from __future__ import annotations

import contextlib
import importlib
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from moekit.component import Component
from moekit.contracts import Batch, LayerDims, ModelOutput
from moekit.discovery import BUILTIN
from moekit.registry import current
from moekit.seeds import seed_torch
from moekit.spec.fields import Spec
from moekit.spec.kinds import ExpertSpec

DIMS = {
    "router": LayerDims(dim=8, num_experts=16),
    "expert": LayerDims(dim=6, num_experts=3, out_dim=5),
    "dispatcher": LayerDims(dim=4, num_experts=8, out_dim=3),
    "balancer": LayerDims(dim=4, num_experts=8),
}
"""Sizes of the layer that a component is built for: small, and unequal where a mix-up of two sizes would show."""

ATTENTION_DIM = 64

S = TypeVar("S", bound=Spec)
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One component under test, with one example of its options.

    It is built for a layer of sizes ``dims``. Its label in tests and messages is ``router/mine``, or ``router/mine.2``
    for a second example. ``batch`` is what a model runs on, and ``output`` with it what an objective gets, where the
    kit has no standard one.
    """

    component: Component
    spec: Spec
    dims: LayerDims
    label: str
    batch: Batch | None = None
    output: ModelOutput | None = None

    @property
    def kind(self) -> str:
        """The component's kind."""
        return self.component.kind

    def spec_as(self, cls: type[S]) -> S:
        """The options, which are of class ``cls``."""
        assert isinstance(self.spec, cls)
        return self.spec

    def build_raw(self, seed: int = 0, *, dims: LayerDims | None = None) -> Any:
        """What the component's target returns, unchanged."""
        kind = current().kinds[self.kind]
        context: tuple[Any, ...] = ()
        if kind.context == ("dims",):
            context = (dims or self.dims,)
        elif kind.context:
            context = checks_module(self.kind).context(self)
        with seeded(seed):
            return self.component.load()(self.spec, *context)

    def build(self, seed: int = 0, *, dims: LayerDims | None = None) -> nn.Module:
        """The module in training mode, with random parameters, so that no weight of 0 or 1 can hide a mistake."""
        module: nn.Module = self.build_raw(seed, dims=dims)
        with seeded(seed + 1), torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(0.5 * noise if parameter.ndim >= 2 else parameter + 0.1 * noise)
        return module

    def build_as(self, cls: Callable[..., M]) -> M:
        """``build()``, whose result is of class ``cls``."""
        module = self.build()
        assert isinstance(cls, type) and isinstance(module, cls)
        return cast("M", module)

    def with_experts(self, count: int) -> Case:
        """The same case for another number of experts."""
        dims = replace(self.dims, num_experts=count)
        spec = replace(self.spec, count=count) if isinstance(self.spec, ExpertSpec) else self.spec
        return replace(self, spec=spec, dims=dims)


Check = Callable[[Case], None]


@dataclass(frozen=True)
class Omitted:
    """A check that does not run for a case, and why."""

    check: Check
    reason: str


def claimed(case: Case, claim: str, *checks: Check) -> Iterator[Check | Omitted]:
    """Checks of a capability, which run if the spec claims it: ``claimed(case, "causal", check_causal)``."""
    reason = f"{type(case.spec).__name__} does not claim '{claim}'"
    for check in checks:
        yield check if getattr(case.spec, claim) else Omitted(check, reason)


class CheckSkipped(unittest.SkipTest):
    """A check cannot run here, through no fault of the component. pytest reports it as skipped."""


def checks_module(kind: str) -> Any:
    """The module of a kind's conformance checks; None if it has none but those of every kind.

    The kit has those of moekit's own kinds. The row of another kind names its module.
    """
    row = current().kinds[kind]
    name = row.checks or (f"{__package__}.checks.{kind}" if row.plugin == BUILTIN else "")
    return importlib.import_module(name) if name else None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator within the block, and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Samples from N(0, 1), the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors_in(value: Any) -> dict[str, Tensor]:
    """The tensors among a dataclass's fields, by name."""
    if not is_dataclass(value):
        return {}
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
