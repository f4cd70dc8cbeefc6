"""A model in shards: each rank keeps some of the experts, and a piece of everything else.

The routed experts of a layer are spread over an expert group (``expert_parallel`` built only a rank's own), and those
of a rank are cut again over the ranks that have the same. Whatever else there is, is cut over all ranks. Cutting,
gathering before use and adding gradients up afterwards is FSDP2's work (``torch.distributed.fsdp.fully_shard``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from moekit.contracts import Model
from moekit.errors import MoekitError
from moekit.layer import MoELayer
from moekit.parallel.cut import cut_of
from moekit.parallel.mesh import REPLICA, mesh_of, world_mesh
from moekit.parallel.reduced import reduced_by, reduced_place
from moekit.shards.shard import Box, held_box


def shard(model: Model, ep: int, device_type: str, policy: MixedPrecisionPolicy | None = None) -> None:
    """Cuts a model's parameters up, in place; on every rank.

    A mixture layer is a unit of its own, whose parameters are the bank's, gathered over the ranks that hold the same
    experts before the layer runs: dispatchers may then use the bank's weights without calling it. Its router and its
    shared experts are units beside it, gathered over all ranks, as is every module of ``model.stack()``, and the rest.
    Experts that no other rank holds are left as they are.

    From then on ``backward`` adds gradients up over the ranks that share a parameter: sums, not means.

    Args:
        model: built alike on every rank, but for the experts.
        ep: ranks that share the experts of a layer.
        device_type: ``cpu`` or ``cuda``.
        policy: in which dtypes parameters are gathered and gradients added up; their own when left out.
    """
    policy = policy or MixedPrecisionPolicy()
    world = world_mesh(device_type)
    alone: set[nn.Parameter] = set()
    for layer in spread_layers(model):
        mesh = mesh_of(ep, device_type)[REPLICA]
        if mesh.size() == 1:
            alone.update(layer.experts.parameters())
            continue
        beside: list[nn.Module] = [layer.router] if layer.shared is None else [layer.router, layer.shared]
        for part in beside:
            if any(True for _ in part.parameters()):
                _cut(part, world, policy)
        _cut(layer, mesh, policy)
    for unit in (*model.stack(), model):
        _cut(unit, world, policy, alone)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _cut(
    module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, but: set[nn.Parameter] | None = None
) -> None:
    """Cuts up what no part of a module has been cut for, evenly where that is possible (``cut_of``)."""

    def along(parameter: nn.Parameter) -> Shard:
        return Shard(cut_of(parameter.shape, mesh.size()))

    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=but, shard_placement_fn=along)


def spread_layers(module: nn.Module) -> Iterator[MoELayer]:
    """The mixture layers whose experts live on several ranks."""
    for layer in module.modules():
        if isinstance(layer, MoELayer) and layer.dispatcher.here is not None:
            yield layer


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shards_of(module: nn.Module) -> dict[str, Box]:
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


def tensors_of(module: nn.Module) -> dict[str, Box]:
    """As ``shards_of``, of everything in the module's state dict: buffers too (each rank holds them whole, and alike).

    A tied parameter is there under each of its names.
    """
    first = _first_experts(module)
    held: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return {name: _box(name, t.detach(), first.get(t)) for name, t in held.items()}  # type: ignore[call-overload]


def state_shards_of(module: nn.Module, optimizer: Any) -> dict[str, dict[str, Box | Any]]:
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
    boxes, reduced = shards_of(module), reduced_by(optimizer)
    found: dict[str, dict[str, Box | Any]] = {}
    for name, p in module.named_parameters():
        if not (state := optimizer.state.get(p)):
            continue
        found[name] = {}
        for key, value in state.items():
            if key in reduced:
                shape, offset, _ = reduced_place(boxes[name], reduced[key])
                found[name][key] = Box(f"{name}/{key}", shape, offset, value.detach())
            elif isinstance(value, Tensor):
                of_experts = first.get(p) if value.ndim and value.shape[0] == p.shape[0] else None
                found[name][key] = _box(f"{name}/{key}", value.detach(), of_experts)
            else:
                found[name][key] = value
    return found


def _first_experts(module: nn.Module) -> Mapping[nn.Parameter, tuple[int, int]]:
    """For each parameter of a spread bank: the number of its first expert, and of all experts of the layer."""
    found = {}
    for layer in spread_layers(module):
        here, spec = layer.dispatcher.here, layer.spec
        assert here is not None
        if spec is None:
            raise MoekitError("a mixture layer whose experts are spread over ranks must be built from a spec")
        for p in layer.experts.parameters():
            found[p] = (here.start, spec.experts.count)
    return found


def _box(name: str, tensor: Tensor, of_experts: tuple[int, int] | None) -> Box:
    box = held_box(name, tensor)
    if of_experts is None:
        return box
    first, count = of_experts
    start, *others = box.offset
    return Box(name, (count, *box.global_shape[1:]), (first + start, *others), box.tensor)
