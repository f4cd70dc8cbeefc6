"""A model's weights, and how much of each a device holds: as ``moekit.parallel.sharding`` cuts them up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from moekit.contracts import Model
from moekit.errors import MoekitError
from moekit.layer import MoELayer
from moekit.parallel.sharding import shard_dim
from moekit.planning.optimizer_bytes import Kind


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Devices, and how many of them share the experts of a layer.

    Attributes:
        devices: N.
        ep: ranks that share a layer's experts.
    """

    devices: int
    ep: int

    @property
    def replicas(self) -> int:
        """Ranks that hold the same experts."""
        return self.devices // self.ep


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter.

    Attributes:
        name: in the model.
        shape: as in one process.
        experts: E, where it is a routed bank's; 0 elsewhere.
        unit: number of the block of ``Model.stack()`` that it is in; -1 for none.
        trained: whether it has a gradient.
    """

    name: str
    shape: tuple[int, ...]
    experts: int
    unit: int
    trained: bool

    def held(self, layout: Layout) -> tuple[int, ...]:
        """The shape of what a device computes with: of a bank its own experts, of anything else all."""
        if not self.experts or layout.ep == 1:
            return self.shape
        return (self.shape[0] // layout.ep, *self.shape[1:])

    def ranks(self, layout: Layout) -> int:
        """Over how many ranks that is cut."""
        return layout.replicas if self.experts and layout.ep > 1 else layout.devices

    def cut(self, layout: Layout) -> int:
        """The dimension that it is cut along."""
        return shard_dim(self.held(layout), self.ranks(layout))

    def shard(self, layout: Layout) -> tuple[int, ...]:
        """The shape of the part that the first rank keeps, which has the most: rows are dealt out whole."""
        shape = list(self.held(layout))
        if shape:
            d = self.cut(layout)
            shape[d] = -(-shape[d] // self.ranks(layout))
        return tuple(shape)

    def state_bytes(self, kinds: Sequence[Kind], layout: Layout) -> int:
        """Bytes of what an optimizer keeps of that part. What is not as long as the weight is on every rank whole."""
        held, shard, cut = self.held(layout), self.shard(layout), self.cut(layout)
        return sum(kind.bytes(shard if cut < len(kind.dims) and kind.dims[cut] == cut else held) for kind in kinds)


def weights_of(model: Model) -> list[Weight]:
    """Every parameter of a model, a shared one once.

    Raises:
        MoekitError: routed experts that are no stack, so that a rank's own cannot be told.
    """
    unit = {p: i for i, block in enumerate(model.stack()) for p in block.parameters()}
    routed: dict[nn.Parameter, int] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MoELayer):
            for p in layer.experts.parameters():
                if not p.ndim or p.shape[0] != layer.experts.num_experts:
                    raise MoekitError(
                        f"{name}: {type(layer.experts).__name__} does not stack its experts' weights\n"
                        "  expected parameters whose first dimension is the number of experts"
                    )
                routed[p] = layer.experts.num_experts
    return [
        Weight(name=name, shape=tuple(p.shape), experts=routed.get(p, 0), unit=unit.get(p, -1), trained=p.requires_grad)
        for name, p in model.named_parameters()
    ]


def kept(weights: Iterable[Weight], layout: Layout) -> int:
    """Numbers that the first rank keeps."""
    return sum(prod(w.shard(layout)) for w in weights)


def gathered(weights: Sequence[Weight], layout: Layout) -> tuple[int, int, int]:
    """Numbers that are whole on a device while it computes: outside of blocks; of the largest block; of all blocks.

    What one rank keeps alone is not gathered.
    """
    units: dict[int, int] = {-1: 0}
    for w in weights:
        if w.ranks(layout) > 1:
            units[w.unit] = units.get(w.unit, 0) + prod(w.held(layout))
    rest = units.pop(-1)
    return rest, max(units.values(), default=0), sum(units.values())


def optimizer_bytes(weights: Iterable[Weight], kinds: Mapping[str, Sequence[Kind]], layout: Layout) -> int:
    """Bytes of the optimizer's state on the first rank."""
    return sum(w.state_bytes(kinds.get(w.name, ()), layout) for w in weights)
