"""The plan: for each layout, bytes on a device and bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, cast

from moekit.errors import MoekitError
from moekit.layer import MoELayer
from moekit.params import build_on_meta, countable
from moekit.planning.activations import DTYPES, REST, LayerUse, Pass, measure
from moekit.planning.communication import Wire, wire_of
from moekit.planning.optimizer_bytes import Kind, state_kinds
from moekit.planning.request import Request
from moekit.planning.weight_bytes import Layout, Weight, gathered, kept, optimizer_bytes, weights_of
from moekit.registry import current
from moekit.spec.kinds import ModelSpec, MoE, OptimizerSpec
from moekit.spec.recipe import Recipe

DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device that has the most, in an optimizer step.

    Attributes:
        parameters: its part of the weights, and all buffers.
        gradients: its part of the gradients.
        optimizer: its part of the optimizer's state.
        gathered: weights that are whole on it: what is in no block, the block at work, and the next.
        gathered_gradients: of what is in no block, and of the block at work.
        copies: of routed experts' weights, in the dtype that autocast computes in.
        activations: kept by blocks for backward; other weights' copies among them.
        outside: kept outside of blocks: inputs of those that are computed again, embedding, head and loss.
        at_work: what comes and goes on top of that.
        exchange: rows on their way to experts and back, in one layer.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    gathered_gradients: int
    copies: int
    activations: int
    outside: int
    at_work: int
    exchange: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.terms().values())

    def terms(self) -> dict[str, int]:
        """The terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layout.

    Attributes:
        layout: the devices.
        memory: of one of them.
        wire: what it sends.
    """

    layout: Layout
    memory: Memory
    wire: Wire


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe on a number of devices.

    Attributes:
        request: what was asked.
        recompute: whose activations are computed again; empty for a model that has no such option.
        optimizer: its name.
        whole_tensors: it looks at whole tensors, so that training in shards refuses it.
        parameters: of the model, numbers in all.
        instead: the dispatcher that was planned in place of the recipe's; empty for none.
        rows: one a layout.
    """

    request: Request
    recompute: str
    optimizer: str
    whole_tensors: bool
    parameters: int
    instead: str
    rows: tuple[Row, ...]

    def fits(self, row: Row) -> bool:
        """Whether a layout's bytes are no more than a device has."""
        return row.memory.total <= self.request.device_memory


class Planner:
    """Plans one recipe again and again, and measures each kind of pass once.

    Args:
        recipe: its model is built on the meta device. Without an optimizer it is planned with AdamW.
        tell: is told of every pass, before it is measured: a pass of a large model takes seconds.
    """

    def __init__(self, recipe: Recipe, tell: Callable[[str], object] = lambda text: None) -> None:
        self.recipe, self.tell = recipe, tell
        model = self._model = build_on_meta(recipe.model)
        self.weights: list[Weight] = weights_of(model)
        self.buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        self.mixtures = {name: m.spec for name, m in model.named_modules() if isinstance(m, MoELayer)}
        default = recipe.optimizer or current().get("optimizer", DEFAULT_OPTIMIZER).spec()
        self.optimizer = cast(OptimizerSpec, default)
        self._states: dict[str, Mapping[str, tuple[Kind, ...]]] = {}
        self._passes: dict[tuple[str, int, int, str], Pass] = {}

    def plan(self, request: Request, recompute: str) -> Plan:
        """The plan.

        Args:
            request: the question.
            recompute: a value of the model's option of that name; empty where it has none.
        """
        seen = self.seen(request, recompute)
        return Plan(
            request=request,
            recompute=recompute,
            optimizer=current().use_name(self.optimizer),
            whole_tensors=not self.optimizer.takes_shards,
            parameters=sum(prod(w.shape) for w in self.weights),
            instead=seen.instead,
            rows=tuple(self._row(ep, request, seen, recompute) for ep in request.eps),
        )

    def policy(self, recompute: str) -> str:
        """The same, if the model has that option.

        Raises:
            MoekitError: it has not.
        """
        if recompute and not recompute_of(self.recipe.model):
            raise MoekitError(
                f"{type(self.recipe.model).__name__} has no option 'recompute': its activations are all kept\n"
                "  expected no --recompute"
            )
        return recompute

    def states(self, request: Request) -> Mapping[str, tuple[Kind, ...]]:
        """What the optimizer keeps of each parameter."""
        precision = request.precision
        if precision not in self._states:
            self._states[precision] = state_kinds(self.optimizer, self._model, DTYPES[precision][0])
        return self._states[precision]

    def seen(self, request: Request, recompute: str) -> Pass:
        """What a forward and backward pass takes.

        Raises:
            MoekitError: a tensor of it would have more bytes than can be counted.
        """
        key = (recompute, request.batch, request.sequence, request.precision)
        if key not in self._passes:
            tokens = f"{request.batch} x {request.sequence} tokens"
            self.tell(f"a pass over {tokens}, recompute {recompute or 'none'}")
            with countable(f"fewer than {tokens} in a micro-batch"):
                self._passes[key] = measure(
                    with_recompute(self.recipe.model, recompute),
                    self.recipe.objective,
                    batch=request.batch,
                    sequence=request.sequence,
                    precision=request.precision,
                )
        return self._passes[key]

    def _row(self, ep: int, request: Request, seen: Pass, recompute: str) -> Row:
        layout = Layout(devices=request.devices, ep=ep)
        layers = {name: (self._spec(name), use) for name, use in seen.layers.items()}
        wire = wire_of(layout, request, self.weights, layers, recompute)
        rest, block, blocks = gathered(self.weights, layout)
        trained = [w for w in self.weights if w.trained]
        outside = seen.kept.get(REST, 0)
        memory = Memory(
            parameters=kept(self.weights, layout) * request.kept + self.buffers,
            gradients=kept(trained, layout) * request.kept,
            optimizer=optimizer_bytes(self.weights, self.states(request), layout),
            gathered=(rest + min(2 * block, blocks)) * request.kept,
            gathered_gradients=(rest + block) * request.kept,
            copies=self._copies(layout, request, seen),
            activations=seen.activations - outside,
            outside=outside,
            at_work=seen.peak - seen.activations,
            exchange=_in_flight(wire, seen.layers),
        )
        return Row(layout=layout, memory=memory, wire=wire)

    def _copies(self, layout: Layout, request: Request, seen: Pass) -> int:
        """Those that are kept for backward, of all layers; where they are made again, those of one layer."""
        _, narrow = DTYPES[request.precision]
        if narrow is None:
            return 0
        banks: dict[str, int] = {}
        for w in self.weights:
            if w.experts:
                bank = w.name.rpartition(".experts.")[0]
                banks[bank] = banks.get(bank, 0) + prod(w.held(layout)) * narrow.itemsize
        return seen.copies // layout.ep or max(banks.values(), default=0)

    def _spec(self, name: str) -> MoE:
        spec = self.mixtures[name]
        if spec is None:
            raise MoekitError(f"{name}: a mixture layer must be built from a spec (MoELayer.from_spec) to be spread")
        return spec


def recompute_of(spec: ModelSpec) -> str:
    """What a model's spec says of recomputing; empty where it has no such option."""
    return str(getattr(spec, "recompute", ""))


def with_recompute(spec: ModelSpec, recompute: str) -> ModelSpec:
    """The model with another value of its option ``recompute``."""
    return cast(ModelSpec, replace(cast(Any, spec), recompute=recompute)) if recompute else spec


def _in_flight(wire: Wire, layers: Mapping[str, LayerUse]) -> int:
    """Bytes of the rows of the layer that sends most: a buffer to send from and one to receive into, there or back.

    What is widened to be summed, a row for each rank, is no more than what is at work anyway, a row for each choice.
    """
    per_layer = (
        2 * wire.layers[name].reached * use.tokens * max(use.dim * use.element, use.out_dim * use.out_element)
        for name, use in layers.items()
        if wire.layers[name].rows
    )
    return round(max(per_layer, default=0))
