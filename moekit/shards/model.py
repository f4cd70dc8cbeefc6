"""What this process holds of a model, of its parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.errors import MoekitError
from moekit.layer import MoELayer
from moekit.shards.shard import Dims, TensorShard, local_shard


def expert_parallel_layers(module: nn.Module) -> Iterator[MoELayer]:
    """The mixture layers whose experts live on several ranks."""
    for layer in module.modules():
        if isinstance(layer, MoELayer) and layer.dispatcher.local_experts is not None:
            yield layer


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shards_of(module: nn.Module) -> dict[str, TensorShard]:
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


def tensors_of(module: nn.Module) -> dict[str, TensorShard]:
    """As ``shards_of``, of everything in the module's state dict: buffers too (each rank holds them whole, and alike).

    A tied parameter is there under each of its names.
    """
    first = _first_experts(module)
    held: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: _box(name, t.detach(), first.get(t)) for name, t in held.items()}  # type: ignore[call-overload]


def state_shards_of(module: nn.Module, optimizer: Any) -> dict[str, dict[str, TensorShard | Any]]:
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
    boxes, reduced = shards_of(module), reduced_dims(optimizer)
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
