"""What the devices of a node send to other nodes in an optimizer step.

Nodes have M devices each, neighbours in the order of ranks. The ranks of an expert group are neighbours too, so tokens
stay in a node if ``ep`` divides M. All-gathers and reduce-scatters are taken to be rings in the order of ranks: from a
rank to the next go all shards but one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from moekit.spec.kinds import MoE
from moekit_plan.activations import LayerUse
from moekit_plan.communication import LayerTraffic, layer_traffic, number_bytes, replicated_gradients
from moekit_plan.request import PlanRequest
from moekit_plan.weight_bytes import Layout, Weight


@dataclass(frozen=True, kw_only=True)
class NodeTraffic:
    """What one node sends to the others; it receives as much.

    Attributes:
        layers: by name of the MoE layer, what one of its devices sends to devices of other nodes.
        devices: M.
        gathers: bytes of weights.
        scatters: bytes of gradients, by reduce-scatter. An all-reduce in its place, as gloo's, sends twice as many.
            Those of replicated weights are all-reduced.
    """

    layers: Mapping[str, LayerTraffic]
    devices: int
    gathers: float
    scatters: float

    @property
    def exchanged(self) -> float:
        """Bytes of tokens, over all layers and devices."""
        return self.devices * sum(layer.bytes for layer in self.layers.values())

    @property
    def rows(self) -> float:
        """Mean number of rows that a token sends to other nodes, over all layers."""
        return sum(layer.rows for layer in self.layers.values()) / max(len(self.layers), 1)


def between_nodes(
    layout: Layout,
    request: PlanRequest,
    weights: Sequence[Weight],
    mixtures: Mapping[str, tuple[MoE, LayerUse]],
    recompute: str,
) -> NodeTraffic:
    """What a node of ``request.per_node`` devices sends. Arguments as in ``communication.traffic_of``."""
    M, ep = request.per_node, layout.ep
    layers = {
        name: layer_traffic(
            moe, use, ep, request.accumulate, recompute=recompute in ("experts", "blocks"), here=min(M, ep)
        )
        for name, (moe, use) in mixtures.items()
    }
    gathers = scatters = 0.0
    each = zip(weights, number_bytes(layout, request, weights), strict=True) if M < layout.devices else ()
    for w, (gathered, scattered) in each:
        n = w.ranks(layout)
        rings = min(ep, M) if n < layout.devices else 1  # whose next rank is on another node, of those in this node
        numbers = rings * prod(w.local_shape(layout)) * (n - 1) / n
        gathers += numbers * gathered
        scatters += numbers * scattered
    replicated = sum(replicated_gradients(layout, request, weights)) if M < layout.devices else 0
    sums = 2 * replicated * (layout.devices - 1) / layout.devices
    return NodeTraffic(layers=layers, devices=M, gathers=gathers, scatters=scatters + sums)
