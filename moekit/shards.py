"""Shards: what a rank holds of a tensor, of a model, and of an optimizer's state.

A shard is a rectangular region of a tensor, given by its offset and its shape. One description serves three cases: a
plain tensor (one shard, the whole tensor), a ``DTensor`` of FSDP2, and the experts of an expert-parallel layer, whose
place among all experts only the dispatcher knows. Checkpoints store shards, and any region of a tensor can be assembled
from those that intersect it; hence a model saved in one layout can be loaded in any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from moekit.compat import shard_bounds
from moekit.distributed import host_group, is_distributed
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer

Dims = tuple[int, ...]
"""One number for each dimension of a tensor: an offset or a shape."""


@dataclass(frozen=True)
class TensorShard:
    """The part of a tensor that this rank holds.

    Args:
        name: of the global tensor.
        global_shape: of the global tensor.
        offset: where the shard begins in the global tensor.
        tensor: the shard's values; it may be empty.

    Raises:
        ValueError: the shard reaches beyond the global tensor.
    """

    name: str
    global_shape: Dims
    offset: Dims
    tensor: Tensor

    def __post_init__(self) -> None:
        if not contains(self.global_shape, self.offset, self.sizes):
            raise ValueError(f"{self.name}: a shard of {self.sizes} at {self.offset} exceeds {self.global_shape}")

    @property
    def sizes(self) -> Dims:
        """The shard's shape."""
        return tuple(self.tensor.shape)


# ---- regions of a tensor ---------------------------------------------------------------------------------------------


def contains(shape: Dims, offset: Dims, sizes: Dims) -> bool:
    """Whether a tensor of this shape has the region ``(offset, sizes)``."""
    if not len(shape) == len(offset) == len(sizes):
        return False
    return all(o >= 0 and o + n <= size for o, n, size in zip(offset, sizes, shape, strict=True))


def intersection(offset: Dims, sizes: Dims, other_offset: Dims, other_sizes: Dims) -> tuple[Dims, Dims] | None:
    """The offset and sizes of the region that two regions share; None if they are disjoint."""
    starts = tuple(map(max, offset, other_offset))
    ends = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, sizes, other_offset, other_sizes, strict=True))
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return None
    return starts, tuple(end - start for start, end in zip(starts, ends, strict=True))


def slices_of(offset: Dims, sizes: Dims, origin: Dims = ()) -> tuple[slice, ...]:
    """The slices that select a region from a tensor whose first element is at ``origin`` (default: 0)."""
    origin = origin or (0,) * len(offset)
    return tuple(slice(o - start, o - start + n) for o, n, start in zip(offset, sizes, origin, strict=True))


def tiling_error(global_shape: Dims, regions: Sequence[tuple[Dims, Dims]]) -> str:
    """Why regions ``(offset, sizes)`` do not cover each element of a tensor exactly once; empty if they do."""
    for i, (offset, sizes) in enumerate(regions):
        for other_offset, other_sizes in regions[:i]:
            if common := intersection(offset, sizes, other_offset, other_sizes):
                return f"two shards hold {list(common[1])} elements at {list(common[0])}"
    covered, total = sum(math.prod(sizes) for _, sizes in regions), math.prod(global_shape)
    return "" if covered == total else f"the shards hold {covered} of {total} elements"


# ---- shards of tensors, models and optimizers ------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory; a plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shard(name: str, tensor: Tensor, expert_rows: tuple[int, int] | None = None) -> TensorShard:
    """This rank's shard of a tensor, sharing its memory; of a plain tensor, all of it.

    Args:
        name: of the global tensor.
        tensor: a plain tensor or a ``DTensor``.
        expert_rows: for stacked weights of a part of a layer's experts: the index of the first, and the number of all.
            No ``DTensor`` says so, since they are different tensors on each rank.

    Raises:
        ValueError: a ``DTensor``'s local tensor is not of the shape that its placements imply.
    """
    shape, offset, held = tuple(tensor.shape), (0,) * tensor.dim(), local(tensor)
    if isinstance(tensor, DTensor):
        sizes, start = shard_bounds(tensor)
        if tuple(held.shape) != sizes:
            raise ValueError(f"{name}: the local tensor is {tuple(held.shape)}, its placements imply {sizes}")
        offset = start if held.numel() else offset
    if expert_rows is not None:
        first, count = expert_rows
        shape, offset = (count, *shape[1:]), (first + offset[0], *offset[1:])
    return TensorShard(name, shape, offset, held)


def expert_parallel_layers(module: nn.Module) -> Iterator[MoELayer]:
    """The mixture layers whose experts are distributed over several ranks."""
    for layer in module.modules():
        if isinstance(layer, MoELayer) and layer.dispatcher.local_experts is not None:
            yield layer


def sharded_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The parameters of which ranks hold different parts: those sharded by FSDP2, and those of distributed experts."""
    experts = {p for layer in expert_parallel_layers(module) for p in layer.experts.parameters()}
    return experts.union(p for p in module.parameters() if isinstance(p, DTensor))


def _expert_rows(module: nn.Module) -> Mapping[nn.Parameter, tuple[int, int]]:
    """For each parameter of distributed experts: the index of this rank's first expert, and the number of experts.

    Raises:
        MoekitError: a layer was not built from a spec, which says how many experts it has.
    """
    found = {}
    for layer in expert_parallel_layers(module):
        if layer.spec is None:
            raise MoekitError("a mixture layer whose experts are distributed over ranks must be built from a spec")
        assert layer.dispatcher.local_experts is not None
        for p in layer.experts.parameters():
            found[p] = (layer.dispatcher.local_experts.start, layer.spec.experts.count)
    return found


def parameter_shards(module: nn.Module) -> dict[str, TensorShard]:
    """This rank's shard of every parameter.

    The result has the same form in any layout: of a plain model, each shard is a whole parameter. A replicated
    parameter has the same shard on each rank. A shard may be empty. A tied parameter is listed once.

    Shards are in the order of ``named_parameters``; their tensors share the parameters' memory.
    """
    rows = _expert_rows(module)
    return {name: local_shard(name, p.detach(), rows.get(p)) for name, p in module.named_parameters()}


def reshard(module: nn.Module) -> None:
    """Makes the parameters of a module the shards again, which have the gradients and the optimizer's state.

    A forward pass without a backward pass leaves some units of FSDP2 gathered: their parameters are other tensors.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def state_dict_shards(module: nn.Module) -> dict[str, TensorShard]:
    """This rank's shard of every tensor in the state dict: as ``parameter_shards``, and buffers, which are replicated.

    A tied parameter is listed under each of its names.
    """
    held: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    rows = _expert_rows(module)  # after FSDP2 has freed what it had gathered, which makes parameters shards again
    return {name: local_shard(name, t.detach(), rows.get(t)) for name, t in held.items()}  # type: ignore[call-overload]


def optimizer_state_shards(module: nn.Module, optimizer: Any) -> dict[str, dict[str, TensorShard | Any]]:
    """What this rank holds of an optimizer's state, by parameter name and by the optimizer's own keys.

    State of the parameter's shape is sharded as the parameter is. State that is reduced along a dimension is sharded as
    ``ReducedState`` says. Any other tensor, such as a count of steps, is replicated and comes as one whole shard.
    Shards are named ``parameter/key``. Values that are not tensors are returned as they are. Parameters without state
    are omitted.

    Raises:
        MoekitError: state of a ``DTensor`` that is none of these: nothing says which part of a whole it is.
    """
    reshard(module)
    rows, reduced = _expert_rows(module), reduced_dims(optimizer)
    found: dict[str, dict[str, TensorShard | Any]] = {}
    for name, p in module.named_parameters():
        if not (state := optimizer.state.get(p)):
            continue
        found[name] = {}
        for key, value in state.items():
            if key in reduced:
                shape, offset, _ = reduced_bounds(local_shard(name, p.detach(), rows.get(p)), reduced[key])
                found[name][key] = TensorShard(f"{name}/{key}", shape, offset, value.detach())
            elif isinstance(value, Tensor):
                if isinstance(p, DTensor) and value.shape not in ((), (1,)):
                    _check_state(f"'{key}' of {name}", value, p)
                per_expert = value.ndim and value.shape[0] == p.shape[0]
                found[name][key] = local_shard(f"{name}/{key}", value.detach(), rows.get(p) if per_expert else None)
            else:
                found[name][key] = value
    return found


def _check_state(what: str, value: Tensor, p: DTensor) -> None:
    if not isinstance(value, DTensor) or value.shape != p.shape:
        form = f"{'' if isinstance(value, DTensor) else 'a plain tensor '}{list(value.shape)}"
        raise MoekitError(
            f"the optimizer's state {what} is {form}, and the parameter {list(p.shape)} is sharded: no checkpoint of "
            "another layout could be made\n  expected torch.zeros_like(parameter), one number, or its dimension in "
            "'reduced' of the optimizer"
        )


@runtime_checkable
class ReducedState(Protocol):
    """An optimizer whose state holds sums or means along a dimension of a parameter, as Adafactor's does.

    Such state has the parameter's dimensions, the reduced one with length 1. It is a plain tensor. Along the reduced
    dimension all ranks that share the parameter hold the same values; along the others it is sharded as the parameter.

    Attributes:
        reduced: the reduced dimension for each key of the state; -1 is the parameter's last.
    """

    reduced: Mapping[str, int]


def reduced_dims(optimizer: object) -> Mapping[str, int]:
    """The reduced dimension for each key of an optimizer's state that has one (``ReducedState``)."""
    return optimizer.reduced if isinstance(optimizer, ReducedState) else {}


def reduced_bounds(shard: TensorShard, dim: int) -> tuple[Dims, Dims, Dims]:
    """Global shape, offset and sizes of what is reduced along dimension ``dim`` of a parameter's shard."""
    dim %= len(shard.global_shape)

    def replaced(dims: Dims, number: int) -> Dims:
        return (*dims[:dim], number, *dims[dim + 1 :])

    return replaced(shard.global_shape, 1), replaced(shard.offset, 0), replaced(shard.sizes, 1)


# ---- filling and gathering -------------------------------------------------------------------------------------------


def fill_shards(shards: Sequence[TensorShard], read: Callable[[str, Dims, Dims], Tensor]) -> None:
    """Overwrites the shards' tensors, in place, with ``read(name, offset, sizes)``."""
    with torch.no_grad():
        for shard in shards:
            if shard.tensor.numel():
                shard.tensor.copy_(read(shard.name, shard.offset, shard.sizes))


def gather(shards: Mapping[str, TensorShard]) -> dict[str, Tensor] | None:
    """Assembles whole tensors from all ranks' shards, on the CPU of rank 0, one tensor at a time.

    Collective: every rank passes the same names in the same order (``parameter_shards``, ``state_dict_shards``).

    Returns:
        Tensors by name on rank 0; None on other ranks.
    """
    if not is_distributed():
        return {name: shard.tensor.cpu() for name, shard in shards.items()}
    is_destination, group = dist.get_rank() == 0, host_group()  # NCCL would send them through rank 0's GPU
    tensors: dict[str, Tensor] = {}
    for name, shard in shards.items():
        received: list[Any] | None = [None] * dist.get_world_size() if is_destination else None
        # Of a replicated tensor, rank 0 needs no copy but its own.
        needed = shard.tensor.numel() and (is_destination or shard.sizes != shard.global_shape)
        held = (shard.offset, shard.tensor.detach().cpu().clone()) if needed else None
        dist.gather_object(held, received, group=group)
        if received is not None:
            tensors[name] = torch.empty(shard.global_shape, dtype=shard.tensor.dtype)
            for offset, tensor in filter(None, received):
                tensors[name][slices_of(offset, tuple(tensor.shape))] = tensor
    return tensors if is_destination else None
