"""A model in shards: each rank keeps some of the experts, and a piece of everything else.

The routed experts of a layer are spread over an expert group (``expert_parallel`` built only a rank's own), and those
of a rank are cut again over the ranks that have the same. Whatever else there is, is cut over all ranks. Cutting,
gathering before use and adding gradients up afterwards is FSDP2's work (``torch.distributed.fsdp.fully_shard``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from moekit.contracts import Model
from moekit.parallel.mesh import REPLICA, expert_mesh, world_mesh
from moekit.shards.shard import expert_parallel_layers


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
    for layer in expert_parallel_layers(model):
        mesh = expert_mesh(ep, device_type)[REPLICA]
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
        return Shard(shard_dim(parameter.shape, mesh.size()))

    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=but, shard_placement_fn=along)


ENOUGH = 8
"""Rows of the first dimension for each rank, from which it does not matter that they do not come out even."""


def shard_dim(shape: Sequence[int], ranks: int) -> int:
    """The dimension that a weight is cut along.

    The first one, whose whole rows are dealt out, unless that would leave ranks without: a bank's rows are experts, and
    a dense layer is a bank of one. Then the first dimension that divides evenly, if there is one.

    Args:
        shape: of what is cut.
        ranks: over how many.
    """
    if not shape or shape[0] >= ENOUGH * ranks:
        return 0
    return next((d for d, n in enumerate(shape) if n % ranks == 0), 0)
