"""The parts of a model that may be to blame for what is not finite: their names, and a watch over a forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, Router
from moekit.groups import Groups, UniformGroups
from moekit.layer import MoELayer
from moekit.routing import ExpertChoice, Routing, TokenChoice

INNER = ("losses", "own_loss", "smooth_load_E")
"""Fields of what a layer saw that are no part's output: what comes of them is looked at by name, after the pass."""


class Watch:
    """Hooks on every module of a model, for one forward pass: ``with Watch(model) as watch``.

    Routers and expert banks are asked as a whole, not the modules inside them.

    Attributes:
        order: names of modules in the order in which they ended.
        place: of the culprit in ``order``.
        found: the first part with finite inputs and an output that is not, in words; empty when there is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.order: list[str] = []
        self.place = 0
        self.found = ""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        closed: list[str] = []
        for name, module in self.model.named_modules():
            if any(name.startswith(f"{outer}.") for outer in closed):
                continue
            self._handles.append(module.register_forward_hook(partial(self._see, name), with_kwargs=True))
            if isinstance(module, Router | ExpertBank):
                closed.append(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.order.append(name)
        if not self.found and finite([args, kwargs]) and not finite(output):
            self.place = len(self.order) - 1
            self.found = self._words(name, module, args, output)

    def _words(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> str:
        experts: list[int] = []
        bank = name
        if isinstance(module, ExpertBank):
            experts = _bad_rows(args[1], output)
        elif isinstance(module, Dispatcher):  # it may use the weights of a bank without calling it
            experts = _bad_pairs(args[0], args[1], args[2], output)
            layer = _layer_around(self.model, name)
            bank = f"{layer}.experts" if experts else name
        if experts:
            return f"{named_experts(self.model, bank, experts)} (inputs and weights are finite)"
        return f"{name or 'the model'} ({type(module).__name__}; inputs and weights are finite)"


def finite(value: Any) -> bool:
    """Whether every float in a tree of tensors is: tuples, lists, mappings, and the values that parts exchange."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(finite(each) for each in value.values())
    if isinstance(value, tuple | list):
        return all(finite(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(finite(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in INNER)
    return True


def unsound(model: nn.Module, name: str, tensor: Tensor) -> str:
    """A parameter's name, or those of its experts, where its values (or its gradient's) are not finite; else empty.

    A collective for a tensor that is spread over ranks.

    Args:
        model: that has it.
        name: of the parameter.
        tensor: its values or gradient, or such of its shape.
    """
    owner, _, last = name.rpartition(".")
    bank = model.get_submodule(owner) if owner else model
    stacked = isinstance(bank, ExpertBank) and tensor.ndim > 0 and tensor.shape[0] == bank.num_experts > 1
    over = tuple(range(1 if stacked else 0, tensor.ndim))
    sound = tensor.detach() * 0  # 0, or NaN; sums of it are known for tensors in shards too
    sound = sound.sum(over) if over else sound
    sound = sound.full_tensor() if hasattr(sound, "full_tensor") else sound
    bad = torch.isnan(sound)
    if not bad.any():
        return ""
    whose = named_experts(model, owner, bad.nonzero().flatten().tolist()) if stacked else owner
    return f"{whose} ({last})"


def named_experts(model: nn.Module, bank: str, experts: list[int]) -> str:
    """``expert 5 of blocks.2.ffn.experts``, numbered over all ranks."""
    layer = model.get_submodule(bank.rpartition(".")[0])
    if isinstance(layer, MoELayer) and bank.endswith("experts") and layer.dispatcher.here is not None:
        experts = [layer.dispatcher.here[e] for e in experts]
    shown = ", ".join(map(str, experts[:3])) + (f" and {len(experts) - 3} more" if len(experts) > 3 else "")
    held = getattr(model.get_submodule(bank), "num_experts", 0)
    return f"expert{'s' if len(experts) > 1 else ''} {shown} of {bank}" if held > 1 else bank


def _bad_rows(groups: Groups, y_NO: Tensor) -> list[int]:
    """The experts of a bank with an output that is not finite."""
    return [e for e, y_nO in enumerate(groups.split(y_NO)) if not finite(y_nO)] if groups.num_experts > 1 else []


def _bad_pairs(x_TD: Tensor, routing: Routing, bank: ExpertBank, output: Dispatched) -> list[int]:
    """The experts that answer the first token that came out not finite with what is not finite; the bank is asked."""
    bad_T = ~torch.isfinite(output.y_TO).all(1)
    E = bank.num_experts
    if not isinstance(routing, TokenChoice | ExpertChoice) or not bad_T.any() or not 1 < E == routing.num_experts:
        return []
    token = int(bad_T.nonzero()[0])
    pairs = routing.pairs()
    chosen = pairs.expert_N[pairs.token_N == token].tolist()
    # Not a call as a module: weights are at hand now, and other ranks may have nothing to look for.
    y_EO = bank.forward(x_TD[token].expand(E, -1).contiguous(), UniformGroups(E, E))
    return [e for e in range(E) if e in chosen and not finite(y_EO[e])]


def _layer_around(model: nn.Module, name: str) -> str:
    """The name of the layer that a dispatcher, itself perhaps inside another, belongs to."""
    while name and not isinstance(model.get_submodule(name), MoELayer):
        name = name.rpartition(".")[0]
    return name
