"""Drawing the weights of a whole model: by name, so that a seed names one model however it is laid out.

Every part is drawn under a seed of its own, made of the model's seed and the part's name; every routed expert under one
of its own, with its number among all experts. What else is built, in which order, and how many of the experts live in
this process changes no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moekit.contracts import ExpertBank, Init, Router
from moekit.layer import MoELayer
from moekit.seeds import seed_of, seed_torch


class OwnedParameter(NamedTuple):
    """A parameter where it stands.

    Attributes:
        module: that has it.
        own: its name there.
        name: its name in the model.
        parameter: itself.
    """

    module: nn.Module
    own: str
    name: str
    parameter: nn.Parameter


class ParameterWriter:
    """How what is drawn comes into a parameter: here, in place."""

    def wants(self, owned: OwnedParameter, expert: int) -> bool:
        """Whether an expert's part of a bank's parameter is to be drawn at all; ``expert`` counts from 0 here."""
        return True

    def take(self, owned: OwnedParameter, expert: int | None) -> Tensor:
        """What is to be drawn into: all of the parameter, or ``[1, ...]`` of it for one expert of a bank."""
        whole = owned.parameter.detach()
        return whole if expert is None else whole[expert : expert + 1]

    def give(self, owned: OwnedParameter, expert: int | None, drawn: Tensor) -> None:
        """Puts it into its place, if it is not there yet."""


deferred: ContextVar[Callable[[nn.Module, Init, int], None] | None] = ContextVar("deferred", default=None)
"""Replaces initialisation where a model is sharded before it is initialised (``moekit.parallel.deferred_init``)."""


def init_weights(module: nn.Module, init: Init, seed: int) -> None:
    """Draws every matrix below ``module`` by ``init`` and sets biases to 0; norms stay 1.

    Routers and expert banks draw their own (``Router.init_weights``): they may know better. Where nothing can be drawn,
    on the meta device, nothing is.

    Args:
        module: a model.
        init: how.
        seed: best drawn (``draw_seed``) before the model is built: building draws too, and not alike in every layout.
    """
    (deferred.get() or draw)(module, init, seed)


def draw(module: nn.Module, init: Init, seed: int, hand: ParameterWriter | None = None) -> None:
    """The same, now, by some hand."""
    with torch.random.fork_rng(devices=[]):
        _draw(module, init, seed, hand or ParameterWriter(), "")


def _draw(module: nn.Module, init: Init, seed: int, hand: ParameterWriter, name: str, first: int = 0) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if isinstance(module, ExpertBank):
        _draw_experts(module, init, seed, hand, name, first)
        return
    seed_torch(seed_of(seed, name))
    if isinstance(module, Router):
        _stand_in(_owned(module, name), hand, lambda: module.init_weights(init))
        return
    _stand_in(_owned(module, name, recurse=False), hand, lambda: _draw_own(module, init))
    here = module.dispatcher.local_experts if isinstance(module, MoELayer) else None
    for child_name, child in module.named_children():
        start = here.start if here and child_name == "experts" else 0
        _draw(child, init, seed, hand, _join(name, child_name), start)


def _draw_own(module: nn.Module, init: Init) -> None:
    for own, parameter in module.named_parameters(recurse=False):
        if parameter.ndim >= 2:
            init.draw(parameter, inputs=1 if isinstance(module, nn.Embedding) else None)
        elif own.startswith("b"):
            nn.init.zeros_(parameter)


def _draw_experts(bank: ExpertBank, init: Init, seed: int, hand: ParameterWriter, name: str, first: int) -> None:
    """Draws a bank expert by expert, as if it held that one alone; one that is not stacked, as a whole.

    Args:
        bank: its parameters are written.
        init, seed, hand, name: as above.
        first: number of the bank's first expert among all of its layer.
    """
    owned = _owned(bank, name)
    if any(o.parameter.ndim < 1 or o.parameter.shape[0] != bank.num_experts for o in owned):
        seed_torch(seed_of(seed, name))
        _stand_in(owned, hand, lambda: bank.init_weights(init))
        return
    for e in range(bank.num_experts):
        if any(hand.wants(o, e) for o in owned):
            seed_torch(seed_of(seed, name, first + e))
            _stand_in(owned, hand, lambda: bank.init_weights(init), e)


def _stand_in(
    owned: Sequence[OwnedParameter], hand: ParameterWriter, write: Callable[[], None], expert: int | None = None
) -> None:
    """Has ``write`` write what the hand takes in the parameters' stead."""
    taken = [hand.take(o, expert) for o in owned]
    try:
        for o, tensor in zip(owned, taken, strict=True):
            setattr(o.module, o.own, nn.Parameter(tensor, requires_grad=False))
        write()
    finally:
        for o in owned:
            setattr(o.module, o.own, o.parameter)
    for o, tensor in zip(owned, taken, strict=True):
        hand.give(o, expert, tensor)


def _owned(module: nn.Module, name: str, recurse: bool = True) -> list[OwnedParameter]:
    return [
        OwnedParameter(m, own, _join(_join(name, inner), own), p)
        for inner, m in (module.named_modules() if recurse else [("", module)])
        for own, p in m.named_parameters(recurse=False)
    ]


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name and own else name or own
