"""What a device sends in an optimizer step: tokens to the ranks of their experts; weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from moekit.parallel.sums import messages
from moekit.spec.kinds import MoE
from moekit_plan.activations import LayerUse
from moekit_plan.reach import ranks_of
from moekit_plan.request import PlanRequest
from moekit_plan.traffic import traffic
from moekit_plan.weight_bytes import Layout, Weight


@dataclass(frozen=True, kw_only=True)
class LayerTraffic:
    """The all-to-all traffic of one MoE layer, for the tokens of one device.

    Attributes:
        reached: mean number of ranks with an expert of a token, its own rank included.
        rows: mean number of rows that a token sends to other ranks.
        bytes_per_token: dispatch, combine and their gradients, recomputation included.
        bytes: per optimizer step.
        messages: per optimizer step.
    """

    reached: float
    rows: float
    bytes_per_token: float
    bytes: float
    messages: int


@dataclass(frozen=True, kw_only=True)
class DeviceTraffic:
    """What one device sends in an optimizer step.

    Attributes:
        layers: by name of the MoE layer.
        gathers: bytes of weights that a device receives.
        scatters: bytes of gradients of sharded weights that it sends.
        sums: bytes of gradients of replicated weights that it sends, once in a step.
        collectives: all-gathers, reduce-scatters and, for these sums, all-reduces.
    """

    layers: Mapping[str, LayerTraffic]
    gathers: float
    scatters: float
    sums: float
    collectives: int

    @property
    def exchanged(self) -> float:
        """Bytes of tokens, over all layers."""
        return sum(layer.bytes for layer in self.layers.values())

    @property
    def messages(self) -> int:
        """Messages of tokens, over all layers."""
        return sum(layer.messages for layer in self.layers.values())


def traffic_of(
    layout: Layout,
    request: PlanRequest,
    weights: Sequence[Weight],
    mixtures: Mapping[str, tuple[MoE, LayerUse]],
    recompute: str,
) -> DeviceTraffic:
    """What a device sends, for MoE layers (``mixtures``) of given specs and uses in one pass.

    With ``recompute`` of ``experts`` or ``blocks``, backward dispatches the tokens once more.
    """
    layers = {
        name: layer_traffic(moe, use, layout.ep, request.accumulate, recompute=recompute in ("experts", "blocks"))
        for name, (moe, use) in mixtures.items()
    }
    gathers = scatters = 0.0
    for w, (gathered, scattered) in zip(weights, number_bytes(layout, request, weights), strict=True):
        if (n := w.ranks(layout)) > 1:
            numbers = prod(w.local_shape(layout)) * (n - 1) / n
            gathers += numbers * gathered
            scatters += numbers * scattered
    replicated = replicated_gradients(layout, request, weights)
    units, once = _units(layout, weights)
    reductions = 1 if request.reduce == "step" else request.accumulate
    return DeviceTraffic(
        layers=layers,
        gathers=gathers,
        scatters=scatters,
        sums=2 * sum(replicated) * (layout.devices - 1) / layout.devices,
        collectives=(2 * units - once) * request.accumulate + units * reductions + len(messages(replicated)),
    )


def number_bytes(layout: Layout, request: PlanRequest, weights: Sequence[Weight]) -> list[tuple[int, int]]:
    """For each weight, the bytes of a step in which one number is all-gathered, and its gradient reduce-scattered."""
    last = _last(layout, weights)
    reductions = 1 if request.reduce == "step" else request.accumulate
    found = []
    for w in weights:
        gathers = request.accumulate * (1 if w.unit in (-1, last) else 2)
        itemsize = w.gathered_itemsize(layout, request.precision, request.itemsize)
        found.append((gathers * itemsize, reductions * _wide(request) * w.trained))
    return found


def replicated_gradients(layout: Layout, request: PlanRequest, weights: Sequence[Weight]) -> list[int]:
    """Bytes of each tensor that is all-reduced in a step: gradients, and before them a number for each."""
    if not layout.replicated or layout.devices == 1:
        return []
    numbers = [prod(w.shape) for w in weights if not w.experts and w.trained]
    return [n * _wide(request) for n in (len(numbers), *numbers)] if numbers else []


def _wide(request: PlanRequest) -> int:
    """Bytes of a number of a gradient that is summed: half precision is summed in fp32."""
    return max(request.itemsize, 4)


def layer_traffic(moe: MoE, use: LayerUse, ep: int, accumulate: int, *, recompute: bool, here: int = 1) -> LayerTraffic:
    """The all-to-all traffic of one layer, for the tokens of one of the ``ep`` devices in ``accumulate`` micro-batches.

    Args:
        moe, use: the layer.
        ep: size of the expert group.
        accumulate: micro-batches.
        recompute: whether backward recomputes the forward pass.
        here: how many of the ``ep`` devices are not counted as receivers: this one alone, or all of its node.
    """
    E = moe.experts.count
    reached = ranks_of(moe.router, E, ep)
    rows = reached * (ep - here) / ep
    if ep == here:
        return LayerTraffic(reached=reached, rows=0.0, bytes_per_token=0.0, bytes=0.0, messages=0)
    sent = traffic(
        rows * use.tokens,
        size=ep - here + 1,
        choices=min(ceil(moe.router.active(E)), E // ep),
        dim=use.dim,
        out_dim=use.out_dim,
        element_bytes=use.element_bytes,
        out_element_bytes=use.out_element_bytes,
        gate_bytes=max(4, use.element_bytes),
    )
    total = sent.forward * (1 + recompute) + sent.backward
    return LayerTraffic(
        reached=reached,
        rows=rows,
        bytes_per_token=total / use.tokens,
        bytes=total * accumulate,
        messages=(sent.forward_messages * (1 + recompute) + sent.backward_messages) * accumulate,
    )


def _units(layout: Layout, weights: Sequence[Weight]) -> tuple[int, int]:
    """How many units are all-gathered and reduce-scattered, and how many of these are gathered once in a pass.

    A unit is a block, or what is outside of blocks. Where experts are sharded over replicas, the bank, router and
    shared experts of a layer are units of their own; if all else is replicated, the banks alone are. What is outside,
    and the last block, are not gathered again in backward.
    """
    if layout.devices == 1:
        return 0, 0
    last = _last(layout, weights)
    block_of = {bank: w.unit for w in weights if w.experts for bank in [w.name.rpartition(".experts.")[0]]}
    units = [] if layout.replicated else list({w.unit for w in weights})
    banks = list(block_of.values())
    if layout.replicated and layout.replicas > 1:
        units += banks
    elif 1 < layout.ep < layout.devices:
        units += banks + [block_of[bank] for part in ("router", "shared") for bank in _layers_with(weights, part)]
    return len(units), sum(unit in (-1, last) for unit in units)


def _last(layout: Layout, weights: Sequence[Weight]) -> int:
    """The last block with sharded weights; -1 if there is none."""
    return max((w.unit for w in weights if w.ranks(layout) > 1), default=-1)


def _layers_with(weights: Sequence[Weight], part: str) -> set[str]:
    """The MoE layers that have weights in a part."""
    banks = {w.name.rpartition(".experts.")[0] for w in weights if w.experts}
    return {
        bank for bank in banks if any(w.name.startswith(f"{bank}.{part}." if bank else f"{part}.") for w in weights)
    }
