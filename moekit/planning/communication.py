"""What a device sends in an optimizer step: tokens to the ranks that hold their experts, weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from moekit.parallel.traffic import traffic
from moekit.planning.activations import LayerUse
from moekit.planning.request import Request
from moekit.planning.weight_bytes import Layout, Weight
from moekit.spec.kinds import MoE


@dataclass(frozen=True, kw_only=True)
class LayerWire:
    """What the tokens of one device send because of one mixture layer.

    Attributes:
        reached: ranks that a token goes to on average, its own rank among them where it holds a choice.
        rows: rows that a token sends to other ranks.
        bytes_per_token: there and back, gradients included, recomputation too.
        bytes: per optimizer step, of one device.
        messages: per optimizer step, of one device.
    """

    reached: float
    rows: float
    bytes_per_token: float
    bytes: float
    messages: int


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What one device sends in an optimizer step.

    Attributes:
        layers: by name of the mixture layer.
        gathers: bytes of weights that reach a device.
        scatters: bytes of gradients that leave it.
        collectives: all-gathers and reduce-scatters.
    """

    layers: Mapping[str, LayerWire]
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


def wire_of(
    layout: Layout,
    request: Request,
    weights: Sequence[Weight],
    mixtures: Mapping[str, tuple[MoE, LayerUse]],
    recompute: str,
) -> Wire:
    """What a device sends.

    Args:
        layout: the devices.
        request: precision and accumulation.
        weights: of the model.
        mixtures: what each layer is, and what it is given in one pass.
        recompute: under ``experts`` and ``blocks`` the tokens travel once more.
    """
    layers = {
        name: layer_wire(moe, use, layout.ep, request.accumulate, again=recompute in ("experts", "blocks"))
        for name, (moe, use) in mixtures.items()
    }
    gathers = scatters = 0.0
    for w in weights:
        if (n := w.ranks(layout)) > 1:
            numbers = prod(w.held(layout)) * (n - 1) / n
            gathers += numbers * request.kept * (1 if w.unit < 0 else 2)
            scatters += numbers * max(request.kept, 4) * w.trained  # half precision is added up in fp32
    return Wire(
        layers=layers,
        gathers=gathers * request.accumulate,
        scatters=scatters * request.accumulate,
        collectives=_collectives(layout, weights, len(mixtures)) * request.accumulate,
    )


def layer_wire(moe: MoE, use: LayerUse, ep: int, accumulate: int, *, again: bool) -> LayerWire:
    """What the tokens of one device send because of one layer, in ``accumulate`` micro-batches.

    Args:
        moe: the layer.
        use: what it is given in a micro-batch.
        ep: ranks that share its experts.
        accumulate: micro-batches.
        again: whether the forward pass is computed again for the gradient.
    """
    E = moe.experts.count
    reached = moe.router.ranks_reached(E, ep)
    rows = reached * (ep - 1) / ep
    if ep == 1:
        return LayerWire(reached=reached, rows=0.0, bytes_per_token=0.0, bytes=0.0, messages=0)
    sent = traffic(
        rows * use.tokens,
        size=ep,
        choices=min(ceil(moe.router.active(E)), E // ep),
        dim=use.dim,
        out_dim=use.out_dim,
        element=use.element,
        out_element=use.out_element,
        gate_element=max(4, use.element),
    )
    total = sent.forward * (1 + again) + sent.backward
    return LayerWire(
        reached=reached,
        rows=rows,
        bytes_per_token=total / use.tokens,
        bytes=total * accumulate,
        messages=(sent.forward_messages * (1 + again) + sent.backward_messages) * accumulate,
    )


def _collectives(layout: Layout, weights: Sequence[Weight], layers: int) -> int:
    """Of one micro-batch: blocks are gathered twice and the rest once; gradients are scattered once.

    Where experts are cut over replicas, each mixture layer has three units of its own: bank, router, shared experts.
    """
    if layout.devices == 1:
        return 0
    units = len({w.unit for w in weights if w.unit >= 0})
    if 1 < layout.ep < layout.devices:
        units += layers + sum(1 for part in ("router", "shared") for _ in _with(weights, part))
    return 3 * units + 2 * any(w.unit < 0 for w in weights)


def _with(weights: Sequence[Weight], part: str) -> set[str]:
    """The mixture layers that have weights of their own in a part."""
    banks = {w.name.rpartition(".experts.")[0] for w in weights if w.experts}
    return {
        bank for bank in banks if any(w.name.startswith(f"{bank}.{part}." if bank else f"{part}.") for w in weights)
    }
