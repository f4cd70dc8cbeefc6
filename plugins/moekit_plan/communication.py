"""What a device sends in an optimizer step: tokens to the ranks of their experts; weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

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
        scatters: bytes of gradients that it sends.
        collectives: all-gathers and reduce-scatters.
    """

    layers: Mapping[str, LayerTraffic]
    gathers: float
    scatters: float
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
    for w in weights:
        if (n := w.ranks(layout)) > 1:
            numbers = prod(w.local_shape(layout)) * (n - 1) / n
            gathers += numbers * request.itemsize * (1 if w.unit < 0 else 2)
            scatters += numbers * max(request.itemsize, 4) * w.trained  # half precision is summed in fp32
    return DeviceTraffic(
        layers=layers,
        gathers=gathers * request.accumulate,
        scatters=scatters * request.accumulate,
        collectives=_collectives(layout, weights, len(mixtures)) * request.accumulate,
    )


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


def _collectives(layout: Layout, weights: Sequence[Weight], layers: int) -> int:
    """Of one micro-batch: blocks are all-gathered twice and the rest once; gradients are reduce-scattered once.

    Where experts are sharded over replicas, the bank, router and shared experts of a layer are units of their own.
    """
    if layout.devices == 1:
        return 0
    units = len({w.unit for w in weights if w.unit >= 0})
    if 1 < layout.ep < layout.devices:
        units += layers + sum(1 for part in ("router", "shared") for _ in _layers_with(weights, part))
    return 3 * units + 2 * any(w.unit < 0 for w in weights)


def _layers_with(weights: Sequence[Weight], part: str) -> set[str]:
    """The MoE layers that have weights in a part."""
    banks = {w.name.rpartition(".experts.")[0] for w in weights if w.experts}
    return {
        bank for bank in banks if any(w.name.startswith(f"{bank}.{part}." if bank else f"{part}.") for w in weights)
    }
