"""The plan of a run: for each layout, the memory of a device and what it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, cast

from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.params import countable
from moekit.registry import current
from moekit.spec.kinds import ModelSpec, MoE, OptimizerSpec
from moekit.spec.recipe import Recipe
from moekit_plan.activations import DTYPES, REST, LayerUse, Pass, measure, model_on_meta
from moekit_plan.communication import DeviceTraffic, traffic_of
from moekit_plan.nodes import NodeTraffic, between_nodes
from moekit_plan.request import PlanRequest
from moekit_plan.weight_bytes import (
    Layout,
    StateTensor,
    Weight,
    gathered_numbers,
    optimizer_bytes,
    optimizer_state,
    sharded_numbers,
    weights_of,
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device that has the most, in an optimizer step.

    Attributes:
        parameters: its shards of the weights, and all buffers.
        gradients: its shards of the gradients.
        optimizer: its shards of the optimizer's state.
        gathered: all-gathered weights: those outside of blocks, of the current block, and of the next.
        gathered_gradients: gradients of those outside of blocks and of the current block, before they are reduced; of
            all, where they are reduced once in a step.
        copies: of routed experts' weights, in the dtype of autocast.
        activations: saved for backward in blocks; autocast's copies of other weights included.
        outside: saved for backward outside of blocks: inputs of recomputed blocks, embedding, head and loss.
        transient: the peak of a pass above what is saved for backward.
        exchange: rows of one layer that are sent to experts and back.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    gathered_gradients: int
    copies: int
    activations: int
    outside: int
    transient: int
    exchange: int

    @property
    def total(self) -> int:
        """The sum of all terms."""
        return sum(self.terms().values())

    def terms(self) -> dict[str, int]:
        """The terms by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class LayoutPlan:
    """The plan of one layout: memory of the device that has the most, and what a device sends.

    Attributes:
        links: what a node sends to others; None where the request has no nodes.
    """

    layout: Layout
    memory: Memory
    traffic: DeviceTraffic
    links: NodeTraffic | None = None


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of a recipe on a number of devices.

    Attributes:
        request: what was planned.
        recompute: the model's policy of activation checkpointing; empty for a model without that option.
        optimizer: its name.
        whole_tensors: the optimizer needs whole tensors, so sharded training rejects it.
        parameters: numbers in the whole model.
        substitute: the dispatcher that was planned in place of the recipe's; empty for none.
        rows: one for each layout.
    """

    request: PlanRequest
    recompute: str
    optimizer: str
    whole_tensors: bool
    parameters: int
    substitute: str
    rows: tuple[LayoutPlan, ...]

    def fits(self, row: LayoutPlan) -> bool:
        """Whether a layout takes no more than a device's memory."""
        return row.memory.total <= self.request.device_memory


class RunPlanner:
    """Plans one recipe for any number of requests. Each kind of pass is measured once.

    Args:
        recipe: its model is built on the meta device. Without an optimizer it is planned with the default one.
        on_progress: called before every pass is measured: a pass of a large model takes seconds.
    """

    def __init__(self, recipe: Recipe, on_progress: Callable[[str], object] = lambda text: None) -> None:
        self.recipe, self.on_progress = recipe, on_progress
        model = self._model = model_on_meta(recipe.model, recipe.start)
        self.weights: list[Weight] = weights_of(model)
        self.buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        self.mixtures = {name: m.spec for name, m in model.named_modules() if isinstance(m, MoELayer)}
        self.optimizer = recipe.optimizer or _default_optimizer()
        self._states: dict[str, Mapping[str, tuple[StateTensor, ...]]] = {}
        self._passes: dict[tuple[str, int, int, str], Pass] = {}

    def plan(self, request: PlanRequest, recompute: str) -> RunPlan:
        """Plans every layout of a request. ``recompute`` is a value of the model's option; empty where it has none.

        Raises:
            MoekitError: the model has no option ``recompute``, or a layer without a spec, or it cannot be planned
                (``activations.measure``).
        """
        if recompute and not recompute_of(self.recipe.model):
            raise MoekitError(
                f"{type(self.recipe.model).__name__} has no option 'recompute': its activations are all kept\n"
                "  expected no --recompute"
            )
        measured = self.measured(request, recompute)
        return RunPlan(
            request=request,
            recompute=recompute,
            optimizer=current().use_name(self.optimizer),
            whole_tensors=not self.optimizer.takes_shards,
            parameters=sum(prod(w.shape) for w in self.weights),
            substitute=measured.substitute,
            rows=tuple(self._row(ep, request, measured, recompute) for ep in request.eps),
        )

    def state(self, precision: str) -> Mapping[str, tuple[StateTensor, ...]]:
        """The optimizer's state of each parameter."""
        if precision not in self._states:
            self._states[precision] = optimizer_state(self.optimizer, self._model, DTYPES[precision][0])
        return self._states[precision]

    def measured(self, request: PlanRequest, recompute: str) -> Pass:
        """The memory of a forward and backward pass.

        Raises:
            MoekitError: a tensor of it would have more bytes than can be counted, or the model cannot be planned.
        """
        key = (recompute, request.batch, request.sequence, request.precision)
        if key not in self._passes:
            tokens = f"{request.batch} x {request.sequence} tokens"
            self.on_progress(f"a pass over {tokens}, recompute {recompute or 'none'}")
            with countable(f"fewer than {tokens} in a micro-batch"):
                self._passes[key] = measure(
                    with_recompute(self.recipe.model, recompute),
                    self.recipe.objective,
                    start=self.recipe.start,
                    batch=request.batch,
                    sequence=request.sequence,
                    precision=request.precision,
                )
        return self._passes[key]

    def _row(self, ep: int, request: PlanRequest, measured: Pass, recompute: str) -> LayoutPlan:
        layout = Layout(devices=request.devices, ep=ep, replicated=request.dense == "replicate")
        itemsize = request.itemsize
        layers = {name: (self._spec(name), use) for name, use in measured.layers.items()}
        traffic = traffic_of(layout, request, self.weights, layers, recompute)
        trained = [w for w in self.weights if w.trained]
        gathered = gathered_numbers(
            self.weights, layout, lambda w: w.gathered_itemsize(layout, request.precision, itemsize)
        )
        outside = measured.saved.get(REST, 0)
        memory = Memory(
            parameters=sharded_numbers(self.weights, layout) * itemsize + self.buffers,
            gradients=sharded_numbers(trained, layout) * itemsize,
            optimizer=optimizer_bytes(self.weights, self.state(request.precision), layout),
            gathered=gathered[0] + min(2 * gathered[1], gathered[2]),
            gathered_gradients=_unreduced(request, *gathered_numbers(trained, layout)),
            copies=self._copies(layout, request, measured),
            activations=measured.activations - outside,
            outside=outside,
            transient=measured.peak - measured.activations,
            exchange=_exchange_bytes(traffic, measured.layers),
        )
        links = between_nodes(layout, request, self.weights, layers, recompute) if request.per_node else None
        return LayoutPlan(layout=layout, memory=memory, traffic=traffic, links=links)

    def _copies(self, layout: Layout, request: PlanRequest, measured: Pass) -> int:
        """All layers' copies, if they are saved for backward; if backward makes them again, one layer's.

        None of experts that are all-gathered in that dtype.
        """
        _, narrow = DTYPES[request.precision]
        routed = [w for w in self.weights if w.experts]
        gathered = [w.gathered_itemsize(layout, request.precision, request.itemsize) < request.itemsize for w in routed]
        if narrow is None or all(gathered):
            return 0
        banks: dict[str, int] = {}
        for w in self.weights:
            if w.experts:
                bank = w.name.rpartition(".experts.")[0]
                banks[bank] = banks.get(bank, 0) + prod(w.local_shape(layout)) * narrow.itemsize
        return measured.copies // layout.ep or max(banks.values(), default=0)

    def _spec(self, name: str) -> MoE:
        spec = self.mixtures[name]
        if spec is None:
            raise MoekitError(f"{name}: only a layer built from a spec can be planned\n  expected MoELayer.from_spec")
        return spec


def _default_optimizer() -> OptimizerSpec:
    component = current().default("optimizer")
    if component is None:
        raise MoekitError("the recipe has no optimizer, and no plugin offers a default one\n  expected optimizer=NAME")
    return cast(OptimizerSpec, component.spec_class())


def recompute_of(spec: ModelSpec) -> str:
    """The model's option ``recompute``; empty where it has none."""
    return str(getattr(spec, "recompute", ""))


def with_recompute(spec: ModelSpec, recompute: str) -> ModelSpec:
    """The model with another value of its option ``recompute``."""
    return cast(ModelSpec, replace(cast(Any, spec), recompute=recompute)) if recompute else spec


def _unreduced(request: PlanRequest, rest: int, block: int, blocks: int) -> int:
    """Bytes of whole gradients that are still to be reduced; over several micro-batches they are kept in fp32."""
    if request.reduce == "step" and request.accumulate > 1:
        return (rest + blocks) * max(request.itemsize, 4)
    return (rest + block) * request.itemsize


def _exchange_bytes(traffic: DeviceTraffic, layers: Mapping[str, LayerUse]) -> int:
    """Bytes of the rows of the layer that sends most: one buffer to send from and one to receive into.

    The fp32 buffer in which combined rows are summed is never larger than the transient term, so it is not counted.
    """
    per_layer = (
        traffic.layers[name].reached
        * use.tokens
        * max(use.dim * use.element_bytes, use.out_dim * use.out_element_bytes)
        for name, use in layers.items()
        if traffic.layers[name].rows
    )
    return round(2 * max(per_layer, default=0))
