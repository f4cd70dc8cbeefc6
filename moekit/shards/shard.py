"""Boxes: rectangular pieces of tensors that no process need hold whole.

A checkpoint knows a tensor as boxes that tile it. Which process wrote which box is of no account when it is read: any
other box of the same tensor is put together from those that meet it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.compat import shard_bounds
from moekit.distributed import is_distributed
from moekit.errors import MoekitError
from moekit.layer import MoELayer

Dims = tuple[int, ...]
"""A point of a tensor, or the sizes of a box: a number for each dimension."""


@dataclass(frozen=True)
class TensorShard:
    """A piece of a tensor, held by this process.

    Args:
        name: of the whole tensor.
        global_shape: of the whole tensor.
        offset: where the piece begins in it.
        tensor: the piece; it may be empty.

    Raises:
        ValueError: the piece does not lie inside the whole.
    """

    name: str
    global_shape: Dims
    offset: Dims
    tensor: Tensor

    def __post_init__(self) -> None:
        sizes = tuple(self.tensor.shape)
        same = len(sizes) == len(self.offset) == len(self.global_shape)
        if not same or any(o < 0 or o + n > g for o, n, g in zip(self.offset, sizes, self.global_shape, strict=True)):
            raise ValueError(f"{self.name}: a box of {sizes} at {self.offset} is not inside {self.global_shape}")

    @property
    def sizes(self) -> Dims:
        """The shape of the piece."""
        return tuple(self.tensor.shape)


def unsharded(name: str, tensor: Tensor) -> TensorShard:
    """A tensor that this process holds whole."""
    return TensorShard(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor)


def shard_of_dtensor(name: str, tensor: DTensor) -> TensorShard:
    """This process's piece of a ``DTensor``. Pieces that several processes hold are told apart by nothing.

    The mesh must be all there is to know: a plain tensor of *different* values on each rank, such as the experts that a
    rank keeps, is no ``DTensor`` over them, and needs a ``Box`` of its own.
    """
    sizes, offset = shard_bounds(tensor)
    local = tensor.to_local()
    if tuple(local.shape) != sizes:
        raise ValueError(f"{name}: the local part is {tuple(local.shape)}, its placement says {sizes}")
    return TensorShard(name, tuple(tensor.shape), offset if local.numel() else (0,) * local.dim(), local)


def local_shard(name: str, tensor: Tensor) -> TensorShard:
    """What this process holds of a tensor: its piece of a ``DTensor``, all of any other."""
    return shard_of_dtensor(name, tensor) if isinstance(tensor, DTensor) else unsharded(name, tensor)


def intersection(offset: Dims, sizes: Dims, other_offset: Dims, other_sizes: Dims) -> tuple[Dims, Dims] | None:
    """The offset and sizes of what two boxes have in common; None where that is nothing."""
    starts = tuple(map(max, offset, other_offset))
    ends = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, sizes, other_offset, other_sizes, strict=True))
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return None
    return starts, tuple(end - start for start, end in zip(starts, ends, strict=True))


def slices_of(offset: Dims, sizes: Dims, within: Dims = ()) -> tuple[slice, ...]:
    """The slices of a box; seen from a box that begins at ``within``."""
    within = within or (0,) * len(offset)
    return tuple(slice(o - w, o - w + n) for o, n, w in zip(offset, sizes, within, strict=True))


def tiling_error(global_shape: Dims, boxes: Sequence[tuple[Dims, Dims]]) -> str:
    """What keeps boxes (offset, sizes) from tiling a tensor: each element in one of them; empty where they do."""
    for i, (offset, sizes) in enumerate(boxes):
        for other_offset, other_sizes in boxes[:i]:
            if common := intersection(offset, sizes, other_offset, other_sizes):
                return f"two pieces hold {list(common[1])} elements at {list(common[0])}"
    held, all_ = sum(math.prod(sizes) for _, sizes in boxes), math.prod(global_shape)
    return "" if held == all_ else f"the pieces hold {held} of {all_} elements"


def fill_shards(boxes: Sequence[TensorShard], read: Callable[[str, Dims, Dims], Tensor]) -> None:
    """Fills the boxes' tensors, in place, with what ``read(name, offset, sizes)`` gives."""
    with torch.no_grad():
        for box in boxes:
            if box.tensor.numel():
                box.tensor.copy_(read(box.name, box.offset, box.sizes))


def expert_parallel_layers(module: nn.Module) -> Iterator[MoELayer]:
    """The mixture layers whose experts live on several ranks."""
    for layer in module.modules():
        if isinstance(layer, MoELayer) and layer.dispatcher.local_experts is not None:
            yield layer


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameter_shards(module: nn.Module) -> dict[str, TensorShard]:
    """What this process holds of every parameter: the global shape, the offset of the local part, the local part.

    The same on any layout: a plain model holds every parameter whole. A parameter that several ranks hold whole
    (no strategy cuts it up) has the same box on each. A part may be empty. A tied parameter is there once.

    Args:
        module: a model, or one that holds one (``LitMoE``).

    Returns:
        Boxes by parameter name, in the order of ``named_parameters``; their tensors share the parameters' memory.
    """
    first = _first_experts(module)
    return {name: _box(name, p.detach(), first.get(p)) for name, p in module.named_parameters()}


def state_dict_shards(module: nn.Module) -> dict[str, TensorShard]:
    """As ``shards_of``, of everything in the module's state dict: buffers too (each rank holds them whole, and alike).

    A tied parameter is there under each of its names.
    """
    first = _first_experts(module)
    held: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: _box(name, t.detach(), first.get(t)) for name, t in held.items()}  # type: ignore[call-overload]


def optimizer_state_shards(module: nn.Module, optimizer: Any) -> dict[str, dict[str, TensorShard | Any]]:
    """What this process holds of an optimizer's state, by parameter name and by the optimizer's own keys.

    State of its parameter's shape is laid out as the parameter; what the optimizer has reduced along a dimension, as it
    says (``Reduces``); any other tensor (a count of steps) is the same on every rank that holds the parameter, and
    comes as a whole box. Boxes are named ``parameter/key``. Other values come as they are.
    Param groups are cut by layout (``optimizing.py``), so their number is no property of the run: take a group's
    options by the parameters in it.

    Args:
        module: whose parameters are moved.
        optimizer: a ``torch.optim.Optimizer``; parameters that have no state yet are left out.
    """
    first = _first_experts(module)
    boxes, reduced = parameter_shards(module), reduced_dims(optimizer)
    found: dict[str, dict[str, TensorShard | Any]] = {}
    for name, p in module.named_parameters():
        if not (state := optimizer.state.get(p)):
            continue
        found[name] = {}
        for key, value in state.items():
            if key in reduced:
                shape, offset, _ = reduced_bounds(boxes[name], reduced[key])
                found[name][key] = TensorShard(f"{name}/{key}", shape, offset, value.detach())
            elif isinstance(value, Tensor):
                of_experts = first.get(p) if value.ndim and value.shape[0] == p.shape[0] else None
                found[name][key] = _box(f"{name}/{key}", value.detach(), of_experts)
            else:
                found[name][key] = value
    return found


def _first_experts(module: nn.Module) -> Mapping[nn.Parameter, tuple[int, int]]:
    """For each parameter of a spread bank: the number of its first expert, and of all experts of the layer."""
    found = {}
    for layer in expert_parallel_layers(module):
        here, spec = layer.dispatcher.local_experts, layer.spec
        assert here is not None
        if spec is None:
            raise MoekitError("a mixture layer whose experts are spread over ranks must be built from a spec")
        for p in layer.experts.parameters():
            found[p] = (here.start, spec.experts.count)
    return found


def _box(name: str, tensor: Tensor, of_experts: tuple[int, int] | None) -> TensorShard:
    box = local_shard(name, tensor)
    if of_experts is None:
        return box
    first, count = of_experts
    start, *others = box.offset
    return TensorShard(name, (count, *box.global_shape[1:]), (first + start, *others), box.tensor)


@runtime_checkable
class ReducedState(Protocol):
    """An optimizer whose state holds sums or means along a dimension of a parameter.

    Such state has the parameter's dimensions, that one of length 1. It is a plain tensor: along that dimension the same
    on all ranks between whom it is cut, along the others cut as the parameter.

    Attributes:
        reduced: the dimension, by the state's key; -1 is the parameter's last.
    """

    reduced: Mapping[str, int]


def reduced_dims(optimizer: object) -> Mapping[str, int]:
    """What an optimizer says it reduces; nothing for one that does not."""
    return optimizer.reduced if isinstance(optimizer, ReducedState) else {}


def reduced_bounds(box: TensorShard, dim: int) -> tuple[Dims, Dims, Dims]:
    """Global shape, offset and sizes of what is reduced along a dimension of a parameter that lies as ``box``."""
    dim %= len(box.global_shape)

    def put(place: Dims, number: int) -> Dims:
        return (*place[:dim], number, *place[dim + 1 :])

    return put(box.global_shape, 1), put(box.offset, 0), put(box.sizes, 1)


def gather(boxes: Mapping[str, TensorShard]) -> dict[str, Tensor] | None:
    """Whole tensors by name, on the CPU of rank 0; None on other ranks. One tensor after the other.

    Collective: every rank has the same names, in the same order (``sharding.shards_of``, ``tensors_of``).

    Args:
        boxes: what this process holds of each tensor.
    """
    if not is_distributed():
        return {name: box.tensor.cpu() for name, box in boxes.items()}
    first = dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    for name, box in boxes.items():
        pieces: list[Any] | None = [None] * dist.get_world_size() if first else None
        mine = box.tensor.numel() and (first or box.sizes != box.global_shape)  # what is whole, rank 0 has itself
        dist.gather_object((box.offset, box.tensor.detach().cpu().clone()) if mine else None, pieces)
        if pieces is not None:
            whole[name] = torch.empty(box.global_shape, dtype=box.tensor.dtype)
            for piece in pieces:
                if piece is not None:
                    offset, tensor = piece
                    whole[name][slices_of(offset, tuple(tensor.shape))] = tensor
    return whole if first else None
