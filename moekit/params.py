"""Parameter counts of any model: in total, active for one token, and by part. No memory is allocated.

Models are built on the meta device, where tensors have shapes and no storage: 671 billion parameters take seconds.
Published counts differ in what they include, so there are three readings of "active", and what only training uses
(multi-token prediction) is counted apart. A balancer's selection bias counts even though no gradient trains it:
DeepSeek-V3's published total includes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moekit.contracts import Adapted, ExpertBank, LayerDims, Model
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer, run_on_all
from moekit.registry import build
from moekit.spec.kinds import ExpertSpec, ModelSpec, RouterSpec
from moekit.spec.recipe import Recipe

Reading = Literal["both", "without_input", "without_either"]

PARTS: Final = (
    *("embedding", "attention", "dense ffn", "routers", "routed experts", "shared experts"),
    *("norms", "head", "biases", "other"),
)
"""The parts of a model, in the order of the tables. ``biases``: the balancers' selection biases."""

_PART_OF_LAYER: Final = {"router": "routers", "experts": "routed experts", "shared": "shared experts"}


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many parameters a model has.

    Attributes:
        parts: parameters by part, for every one of ``PARTS``. A tied matrix counts once, as ``embedding``.
        active_parts: of these, the parameters that one token uses, on average.
        trained_parts: of these, the parameters that are trained.
        tied: whether the input embedding is also the head.
        extra: parameters that only training uses, by name, without those shared with the model; not in ``parts``.
    """

    parts: Mapping[str, int]
    active_parts: Mapping[str, int]
    trained_parts: Mapping[str, int]
    tied: bool = False
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parameters, without the extra parts."""
        return sum(self.parts.values())

    @property
    def without_embeddings(self) -> int:
        """All parameters except the input embedding and the head, as papers before 2021 count."""
        return self.total - self.parts["embedding"] - self.parts["head"]

    def active(self, reading: Reading = "both") -> int:
        """Parameters that one token uses.

        Args:
            reading: which embeddings count: ``both``, the input's and the head; ``without_input``, only the head
                (a tied matrix counts, since it is the head); ``without_either``.
        """
        total = sum(self.active_parts.values())
        if reading == "both" or (reading == "without_input" and self.tied):
            return total
        total -= self.active_parts["embedding"]
        return total if reading == "without_input" else total - self.active_parts["head"]


def count_parameters(what: Recipe | ModelSpec | Model, *, frozen: bool = False) -> ParameterCount:
    """Counts the parameters of a recipe's model, of a model's spec, or of a model.

    Args:
        what: the recipe, spec or model.
        frozen: whether parameters that a run has frozen count too, and those that a model fixes.

    Parameters below a module named ``attention`` or ``cross_attention`` count as attention; those that fit no part, as
    ``other``.

    Raises:
        MoekitError: a router without the number of experts that it activates, or a tensor of 2**63 bytes or more.
    """
    model = what if isinstance(what, Model) else build_on_meta(what.model if isinstance(what, Recipe) else what)
    embedding, head = model.embeddings()
    extras = model.extra_parts()
    counter = _Counter(set(extras.values()), model.parameters() if frozen else ())
    counter.take(embedding, "embedding")
    counter.take(head, "head")
    counter.walk(model, "other")
    return ParameterCount(
        parts=counter.parts,
        active_parts={part: round(count - counter.idle[part]) for part, count in counter.parts.items()},
        trained_parts=counter.trained,
        tied=embedding is not None and embedding is head,
        extra={name: counter.only_in(module) for name, module in extras.items()},
    )


def build_on_meta(spec: ModelSpec) -> Model:
    """The model of a spec, without memory: tensors have shapes and no storage.

    Raises:
        MoekitError: a tensor of 2**63 bytes or more.
    """
    with torch.device("meta"), countable("fewer or smaller layers"):
        model: Model = build(spec)
    return model


@contextmanager
def countable(expected: str) -> Iterator[None]:
    """Reports a tensor that is too large even without storage; the message ends with ``expected``.

    Raises:
        MoekitError: a tensor of 2**63 bytes or more, which torch cannot count.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():  # in each of torch's messages about it
            raise
        raise MoekitError(f"some tensor would have 2**63 bytes or more\n  expected {expected}") from error


def multiply_adds(spec: ExpertSpec, dim: int) -> int:
    """Multiply-adds of one expert on one token of width ``dim``, counted by running it on the meta device."""
    with torch.device("meta"):
        bank: ExpertBank = build(replace(spec, count=1), LayerDims(dim=dim, num_experts=1))
        with FlopCounterMode(display=False) as flops:
            run_on_all(bank, torch.empty(1, dim))
    return int(flops.get_total_flops()) // 2


class _Counter:
    """Adds up parameters by part, each once.

    Args:
        excluded: modules that ``walk`` skips.
        kept: parameters that count although they are not trained; the base of adapted experts always counts.
    """

    def __init__(self, excluded: set[nn.Module], kept: Iterable[nn.Parameter] = ()) -> None:
        self.parts, self.trained = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        self.idle = dict.fromkeys(PARTS, 0.0)  # of these, those that an average token does not use
        self.excluded = excluded
        self.seen: set[nn.Parameter] = set()
        self.kept = set(kept)

    def take(self, parameter: nn.Parameter | None, part: str) -> int:
        """Counts one parameter, unless it is fixed or counted already; returns what was added."""
        if parameter is None or parameter in self.seen or (not parameter.requires_grad and parameter not in self.kept):
            return 0
        self.seen.add(parameter)
        self.parts[part] += parameter.numel()
        self.trained[part] += parameter.numel() * parameter.requires_grad
        return parameter.numel()

    def walk(self, module: nn.Module, part: str) -> int:
        """Counts the parameters of a module; returns what was added."""
        if isinstance(module, Adapted):
            self.kept |= set(module.get_submodule("base").parameters())
        added = sum(self.take(parameter, part) for parameter in module.parameters(recurse=False))
        if isinstance(module, MoELayer):
            return added + self._walk_layer(module)
        for name, child in module.named_children():
            if child not in self.excluded:
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
        """The parameters of an excluded module that are not shared with a counted one."""
        counter = _Counter(set(), self.kept)
        counter.seen = set(self.seen)
        return counter.walk(module, "other")


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
            f"router {type(layer.router).__name__} does not say how many experts a token activates\n"
            "  expected its attribute 'spec' to be the RouterSpec that it was built from"
        )
    return spec.active(layer.experts.num_experts)
