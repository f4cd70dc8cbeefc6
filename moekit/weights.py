"""Initialises the weights of a whole model from one seed, with the same result in every layout.

Each module is initialised under a seed of its own, made of the model's seed and the module's name; each routed expert
under one made of its layer's name and its index among all experts. So no weight depends on which other modules exist,
on the order in which they are built, or on how many experts this process holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moekit.contracts import ExpertBank, Init, Router, Table
from moekit.moe_layer import MoELayer
from moekit.seeds import seed_of, seed_torch


class OwnedParameter(NamedTuple):
    """A parameter, the module that owns it, and its names: in its owner, and in the model."""

    module: nn.Module
    attribute: str
    name: str
    parameter: nn.Parameter


class ParameterWriter:
    """How initial values get into a parameter: here, they are written into its own memory.

    A strategy that shards a model overrides it for parameters of which a rank holds a shard.
    """

    def needs(self, owned: OwnedParameter, expert: int) -> bool:
        """Whether this rank holds any value of an expert in stacked weights; ``expert`` is a row of the parameter."""
        return True

    def buffer(self, owned: OwnedParameter, expert: int | None) -> Tensor:
        """The tensor to initialise: as the whole parameter, or as ``[1, ...]`` of it for one expert."""
        whole = owned.parameter.detach()
        return whole if expert is None else whole[expert : expert + 1]

    def store(self, owned: OwnedParameter, expert: int | None, values: Tensor) -> None:
        """Copies the initialised buffer into the parameter, if it is not the parameter's own memory."""


deferred: ContextVar[Callable[[nn.Module, Init, int], None] | None] = ContextVar("deferred", default=None)
"""Replaces initialisation where a strategy shards a model before it is initialised."""


def init_weights(module: nn.Module, init: Init, seed: int) -> None:
    """Initialises every matrix of a module by ``init`` and sets what is named ``b…`` to 0; norms stay 1.

    Routers and experts modules initialise their own parameters (``Router.init_weights``, ``ExpertBank.init_weights``).
    Modules on the meta device are skipped.

    Args:
        module: a model.
        init: the distribution.
        seed: take it (``random_seed``) before the model is built: how many random numbers building takes depends on
            the layout.
    """
    (deferred.get() or init_weights_now)(module, init, seed)


def init_weights_now(module: nn.Module, init: Init, seed: int, writer: ParameterWriter | None = None) -> None:
    """As ``init_weights``, but never deferred, and through ``writer``, which puts the values into the parameters."""
    with torch.random.fork_rng(devices=[]):
        _init_module(module, init, seed, writer or ParameterWriter(), "")


def _init_module(
    module: nn.Module, init: Init, seed: int, writer: ParameterWriter, name: str, first_expert: int = 0
) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if isinstance(module, ExpertBank):
        _init_experts(module, init, seed, writer, name, first_expert)
        return
    seed_torch(seed_of(seed, name))
    if isinstance(module, Router):
        _init_through(writer, _owned(module, name), lambda: module.init_weights(init))
        return
    _init_through(writer, _owned(module, name, recurse=False), lambda: _init_own(module, init))
    held = module.dispatcher.local_experts if isinstance(module, MoELayer) else None
    for child_name, child in module.named_children():
        first = held.start if held and child_name == "experts" else 0
        _init_module(child, init, seed, writer, _join(name, child_name), first)


def _init_own(module: nn.Module, init: Init) -> None:
    if isinstance(module, Table):
        module.draw(init)
        return
    for attribute, parameter in module.named_parameters(recurse=False):
        if attribute.startswith("b"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            init.draw(parameter, inputs=1 if isinstance(module, nn.Embedding) else None)


def _init_experts(
    bank: ExpertBank, init: Init, seed: int, writer: ParameterWriter, name: str, first_expert: int
) -> None:
    """Initialises stacked experts one by one, each as if the module held it alone; others as a whole.

    ``first_expert`` is the index of the module's first expert among all experts of its layer.
    """
    owned = _owned(bank, name)
    if any(o.parameter.ndim < 1 or o.parameter.shape[0] != bank.num_experts for o in owned):
        seed_torch(seed_of(seed, name))
        _init_through(writer, owned, lambda: bank.init_weights(init))
        return
    for e in range(bank.num_experts):
        if any(writer.needs(o, e) for o in owned):
            seed_torch(seed_of(seed, name, first_expert + e))
            _init_through(writer, owned, lambda: bank.init_weights(init), e)


def _init_through(
    writer: ParameterWriter, owned: Sequence[OwnedParameter], init: Callable[[], None], expert: int | None = None
) -> None:
    """Runs ``init`` with the writer's buffers in place of the parameters, then has the writer store them."""
    buffers = [writer.buffer(o, expert) for o in owned]
    try:
        for o, buffer in zip(owned, buffers, strict=True):
            setattr(o.module, o.attribute, nn.Parameter(buffer, requires_grad=False))
        init()
    finally:
        for o in owned:
            setattr(o.module, o.attribute, o.parameter)
    for o, buffer in zip(owned, buffers, strict=True):
        writer.store(o, expert, buffer)


def _owned(module: nn.Module, name: str, recurse: bool = True) -> list[OwnedParameter]:
    return [
        OwnedParameter(owner, attribute, _join(_join(name, inner), attribute), p)
        for inner, owner in (module.named_modules() if recurse else [("", module)])
        for attribute, p in owner.named_parameters(recurse=False)
    ]


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name and child else name or child
