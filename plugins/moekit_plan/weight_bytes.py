"""Bytes of weights and optimizer state on a device, as the strategy that shards a model lays them out.

What an optimizer keeps is read off one that has taken a step on a tiny copy of the model. No two dimensions of a tiny
parameter have the same length, so the length of each dimension of the state shows which of the parameter's it follows.
This works for any optimizer whose state has its parameter's sizes, or some of them, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor, nn

from moekit.contracts import Model
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.parallel.mesh import shard_dim
from moekit.registry import build
from moekit.spec.kinds import OptimizerSpec

PRIMES: Final = (2, 3, 5, 7, 11, 13, 17)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """N devices, of which ``ep`` share a layer's experts.

    ``replicated``: all that is not a routed expert is whole on every device, instead of sharded over all.
    """

    devices: int
    ep: int
    replicated: bool = False

    @property
    def replicas(self) -> int:
        """Ranks that have the same experts."""
        return self.devices // self.ep


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """One tensor of an optimizer's state, for one parameter.

    Attributes:
        dims: for each of its dimensions, the parameter's dimension of the same length; -1 for a length of its own.
        lengths: its shape in the tiny copy.
        itemsize: bytes of a number.
    """

    dims: tuple[int, ...]
    lengths: tuple[int, ...]
    itemsize: int

    def bytes(self, shape: Sequence[int]) -> int:
        """Its size for a parameter of this shape."""
        sizes = (n if d < 0 else shape[d] for d, n in zip(self.dims, self.lengths, strict=True))
        return prod(sizes) * self.itemsize


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter.

    Attributes:
        name: in the model.
        shape: of the whole parameter.
        experts: E, for a routed bank's; 0 for others.
        unit: index of its block in ``Model.stack()``; -1 for none.
        trained: whether it has a gradient.
        rounded: whether it is of a bank of standard form, whose products autocast rounds it for.
    """

    name: str
    shape: tuple[int, ...]
    experts: int
    unit: int
    trained: bool
    rounded: bool = False

    def gathered_itemsize(self, layout: Layout, precision: str, itemsize: int) -> int:
        """Bytes of a number when it is all-gathered: 2 under bf16-mixed, if its bank is a unit."""
        unit = layout.replicas > 1 and (layout.ep > 1 or layout.replicated)
        return 2 if self.rounded and unit and precision == "bf16-mixed" else itemsize

    def local_shape(self, layout: Layout) -> tuple[int, ...]:
        """The shape that a device computes with: a routed bank's own experts; the whole of any other parameter."""
        if not self.experts or layout.ep == 1:
            return self.shape
        return (self.shape[0] // layout.ep, *self.shape[1:])

    def ranks(self, layout: Layout) -> int:
        """Over how many ranks ``local_shape`` is sharded."""
        if not self.experts:
            return 1 if layout.replicated else layout.devices
        return layout.replicas

    def shard_dim(self, layout: Layout) -> int:
        """The dimension along which it is sharded."""
        return shard_dim(self.local_shape(layout), self.ranks(layout))

    def shard_shape(self, layout: Layout) -> tuple[int, ...]:
        """The shape of rank 0's shard, which is the largest: rows are not split."""
        shape = list(self.local_shape(layout))
        if shape:
            d = self.shard_dim(layout)
            shape[d] = -(-shape[d] // self.ranks(layout))
        return tuple(shape)

    def state_bytes(self, state: Sequence[StateTensor], layout: Layout) -> int:
        """Bytes of the optimizer's state of that shard. State without the sharded dimension is whole on every rank."""
        whole, shard, dim = self.local_shape(layout), self.shard_shape(layout), self.shard_dim(layout)
        return sum(each.bytes(shard if dim < len(each.dims) and each.dims[dim] == dim else whole) for each in state)


def weights_of(model: Model) -> list[Weight]:
    """Every parameter of a model, a shared one once.

    Raises:
        MoekitError: routed experts whose weights are not stacked, so that a rank's share of them is unknown.
    """
    unit = {p: i for i, block in enumerate(model.stack()) for p in block.parameters()}
    routed: dict[nn.Parameter, int] = {}
    rounded: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, MoELayer):
            if layer.experts.standard_form() is not None:
                rounded.update(layer.experts.parameters())
            for p in layer.experts.parameters():
                if not p.ndim or p.shape[0] != layer.experts.num_experts:
                    raise MoekitError(
                        f"{name}: {type(layer.experts).__name__} does not stack its experts' weights\n"
                        "  expected parameters whose first dimension is the number of experts"
                    )
                routed[p] = layer.experts.num_experts
    return [
        Weight(
            name=name,
            shape=tuple(p.shape),
            experts=routed.get(p, 0),
            unit=unit.get(p, -1),
            trained=p.requires_grad,
            rounded=p in rounded,
        )
        for name, p in model.named_parameters()
    ]


def sharded_numbers(weights: Iterable[Weight], layout: Layout) -> int:
    """Numbers in rank 0's shards."""
    return sum(prod(w.shard_shape(layout)) for w in weights)


def gathered_numbers(
    weights: Sequence[Weight], layout: Layout, itemsize: Callable[[Weight], int] = lambda weight: 1
) -> tuple[int, int, int]:
    """Numbers, or bytes, that are all-gathered for computing: outside of blocks; of the largest block; of all blocks.

    What only one rank has is not gathered.
    """
    units: dict[int, int] = {-1: 0}
    for w in weights:
        if w.ranks(layout) > 1:
            units[w.unit] = units.get(w.unit, 0) + prod(w.local_shape(layout)) * itemsize(w)
    rest = units.pop(-1)
    return rest, max(units.values(), default=0), sum(units.values())


def optimizer_state(spec: OptimizerSpec, model: nn.Module, dtype: torch.dtype) -> Mapping[str, tuple[StateTensor, ...]]:
    """By parameter name, the tensors of an optimizer's state for weights of ``dtype``.

    Replaces the model's parameters by tiny ones.
    """
    replace_each_tensor(
        model, lambda t: torch.ones(PRIMES[: t.ndim], dtype=dtype if t.is_floating_point() else t.dtype)
    )
    optimizer = build(spec, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        name: tuple(_state_tensor(value) for value in optimizer.state[p].values() if isinstance(value, Tensor))
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def optimizer_bytes(weights: Iterable[Weight], state: Mapping[str, Sequence[StateTensor]], layout: Layout) -> int:
    """Bytes of the optimizer's state on rank 0."""
    return sum(w.state_bytes(state.get(w.name, ()), layout) for w in weights)


def _state_tensor(value: Tensor) -> StateTensor:
    dims = tuple(PRIMES.index(n) if n in PRIMES else -1 for n in value.shape)
    return StateTensor(dims=dims, lengths=tuple(value.shape), itemsize=value.element_size())


def replace_each_tensor(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter and buffer by ``make`` of it: without storage, or tiny.

    A shared parameter stays shared. (``Module.to_empty`` would make two of it.)
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, make(buffer))
