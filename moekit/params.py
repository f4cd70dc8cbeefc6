"""Counting parameters: in total, active for one token, and part by part; of any model, without its memory.

Models are built on the meta device, where tensors have shapes and no storage: 671 billion parameters take seconds.
Published counts differ in what they include, so three readings of "active" are given, and what is used in training
alone (multi-token prediction) is counted apart. A balancer's selection bias counts, trained by gradient or not:
DeepSeek-V3's published total includes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moekit.contracts import ExpertBank, LayerDims, Model
from moekit.errors import MoekitError
from moekit.layer import MoELayer, run_on_all
from moekit.registry import build
from moekit.spec.kinds import ExpertSpec, ModelSpec, RouterSpec
from moekit.spec.recipe import Recipe

Reading = Literal["both", "without_input", "without_either"]

PARTS: Final = (
    "embedding",
    "attention",
    "dense ffn",
    "routers",
    "routed experts",
    "shared experts",
    "norms",
    "head",
    "biases",
    "other",
)
"""The parts of a model, in the order they are told. ``biases``: the balancers' selection biases."""

_PART_OF_LAYER: Final = {"router": "routers", "experts": "routed experts", "shared": "shared experts"}


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many parameters a model has.

    Attributes:
        parts: parameters by part (see ``PARTS``; every part is there). A tied matrix is ``embedding``, once.
        active_parts: of these, what one token runs through, on average.
        tied: whether the input embedding is the head too.
        extra: parts used in training alone, by name, without what they share with the model; not in ``parts``.
    """

    parts: Mapping[str, int]
    active_parts: Mapping[str, int]
    tied: bool = False
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parameters, without the extra parts."""
        return sum(self.parts.values())

    @property
    def without_embeddings(self) -> int:
        """All parameters but the input embedding and the head, as papers before 2021 count."""
        return self.total - self.parts["embedding"] - self.parts["head"]

    def active(self, reading: Reading = "both") -> int:
        """Parameters that one token runs through.

        Args:
            reading: which embeddings count: ``both`` the input's and the head; ``without_input`` the head alone
                (a tied matrix counts, as it is the head); ``without_either``.
        """
        total = sum(self.active_parts.values())
        if reading == "both" or (reading == "without_input" and self.tied):
            return total
        total -= self.active_parts["embedding"]
        return total if reading == "without_input" else total - self.active_parts["head"]


def count_parameters(what: Recipe | ModelSpec | Model) -> ParameterCount:
    """Counts the parameters of a recipe's model, of a model's spec, or of a model.

    What is under a module named ``attention`` or ``cross_attention`` counts as attention; what fits no other part, as
    ``other``.

    Raises:
        MoekitError: a router that does not say how many experts it activates.
    """
    model = what if isinstance(what, Model) else build_on_meta(what.model if isinstance(what, Recipe) else what)
    embedding, head = model.embeddings()
    extras = model.extra_parts()
    counter = _Counter(apart=set(extras.values()))
    counter.take(embedding, "embedding")
    counter.take(head, "head")
    counter.walk(model, "other")
    return ParameterCount(
        parts=counter.parts,
        active_parts={part: round(count - counter.idle[part]) for part, count in counter.parts.items()},
        tied=embedding is not None and embedding is head,
        extra={name: counter.only_in(module) for name, module in extras.items()},
    )


def build_on_meta(spec: ModelSpec) -> Model:
    """The model of a spec, all shapes and no memory."""
    with torch.device("meta"), countable("fewer or smaller layers"):
        model: Model = build(spec)
    return model


@contextmanager
def countable(expected: str) -> Iterator[None]:
    """Says of a tensor that is too large even without storage that it is; ``expected`` is what would have been right.

    Raises:
        MoekitError: its bytes or numbers are more than torch can count.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():  # torch's own word for it, in each of its messages
            raise
        raise MoekitError(f"some tensor would have 2**63 bytes or more\n  expected {expected}") from error


def multiply_adds(spec: ExpertSpec, dim: int) -> int:
    """Multiply-adds of one expert on one token of width ``dim``, as counted by running it on the meta device."""
    with torch.device("meta"):
        bank: ExpertBank = build(replace(spec, count=1), LayerDims(dim=dim, num_experts=1))
        with FlopCounterMode(display=False) as flops:
            run_on_all(bank, torch.empty(1, dim))
    return int(flops.get_total_flops()) // 2


class _Counter:
    """Adds up parameters, each once, under the part that it belongs to.

    Args:
        apart: modules to leave out of the walk.
    """

    def __init__(self, apart: set[nn.Module]) -> None:
        self.parts = dict.fromkeys(PARTS, 0)
        self.idle = dict.fromkeys(PARTS, 0.0)  # of these, what an average token does not run through
        self.apart = apart
        self.seen: set[nn.Parameter] = set()

    def take(self, parameter: nn.Parameter | None, part: str) -> int:
        """Counts one parameter, if it is trained and not counted yet; returns how many numbers were added."""
        if parameter is None or not parameter.requires_grad or parameter in self.seen:
            return 0
        self.seen.add(parameter)
        self.parts[part] += parameter.numel()
        return parameter.numel()

    def walk(self, module: nn.Module, part: str) -> int:
        """Counts what is below a module; returns how many numbers were added."""
        added = sum(self.take(parameter, part) for parameter in module.parameters(recurse=False))
        if isinstance(module, MoELayer):
            return added + self._walk_layer(module)
        for name, child in module.named_children():
            if child not in self.apart:
                added += self.walk(child, _part_of(name, child, part))
        return added

    def _walk_layer(self, layer: MoELayer) -> int:
        states = [balancer.selection_bias() for balancer in layer.balancers.values()]
        biases = sum(bias.numel() for bias in states if bias is not None)
        self.parts["biases"] += biases
        added = dict.fromkeys(_PART_OF_LAYER, 0)
        for name, part in _PART_OF_LAYER.items():
            if (child := getattr(layer, name)) is not None:
                added[name] = self.walk(child, part)
        E = layer.experts.num_experts
        self.idle["routed experts"] += added["experts"] * (1 - _active(layer) / E)
        return biases + sum(added.values())

    def only_in(self, module: nn.Module) -> int:
        """Numbers in a module that was left out of the walk, without parameters that it shares with what was not."""
        apart = _Counter(apart=set())
        apart.seen = set(self.seen)
        return apart.walk(module, "other")


def _part_of(name: str, module: nn.Module, outer: str) -> str:
    if outer in ("routers", "routed experts", "shared experts", "dense ffn"):
        return outer
    if isinstance(module, ExpertBank):
        return "dense ffn"
    if "Norm" in type(module).__name__:
        return "norms"
    return "attention" if name in ("attention", "cross_attention") else outer


def _active(layer: MoELayer) -> float:
    spec: Any = getattr(layer.router, "spec", None) if layer.spec is None else layer.spec.router
    if not isinstance(spec, RouterSpec):
        raise MoekitError(
            f"router {type(layer.router).__name__} does not say how many experts a token runs through\n"
            "  expected its attribute 'spec' to be the RouterSpec that it was built from"
        )
    return spec.active(layer.experts.num_experts)
