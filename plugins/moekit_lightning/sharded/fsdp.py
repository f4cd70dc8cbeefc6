"""Shards a model with FSDP2 (``torch.distributed.fsdp.fully_shard``), next to expert parallelism.

``expert_parallel`` distributes the routed experts of a layer over an expert group: each rank builds only its own. Those
are sharded again over the replicas, the ranks that hold the same experts. Every other parameter is sharded over all
ranks. FSDP2 all-gathers parameters before use and reduce-scatters gradients.
"""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from moekit.contracts import Model
from moekit.parallel.mesh import REPLICA, expert_mesh, shard_dim, world_mesh
from moekit.shards import expert_parallel_layers


def shard(model: Model, ep: int, device_type: str, policy: MixedPrecisionPolicy | None = None) -> None:
    """Shards a model's parameters in place, on every rank.

    FSDP units, each all-gathered at once:

    * the experts of each expert-parallel layer, over its replicas, before the layer runs, so that dispatchers can use
      the weights without calling the experts module. Experts without replicas are not sharded.
    * the router and the shared experts of such a layer, over all ranks;
    * each module of ``model.stack()``, and what remains of the model, over all ranks.

    From then on ``backward`` sums gradients over the ranks that share a parameter; it does not average them.

    Args:
        model: the same on every rank, except for the routed experts.
        ep: size of an expert group.
        device_type: ``cpu`` or ``cuda``.
        policy: dtypes of all-gathers and of gradient reduction; default: the parameters' own.
    """
    policy = policy or MixedPrecisionPolicy()
    world = world_mesh(device_type)
    without_replicas: set[nn.Parameter] = set()
    for layer in expert_parallel_layers(model):
        replicas = expert_mesh(ep, device_type)[REPLICA]
        if replicas.size() == 1:
            without_replicas.update(layer.experts.parameters())
            continue
        for part in (layer.router, layer.shared):
            if part is not None and any(True for _ in part.parameters()):
                _fully_shard(part, world, policy)
        _fully_shard(layer, replicas, policy)
    for unit in (*model.stack(), model):
        _fully_shard(unit, world, policy, without_replicas)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _fully_shard(
    module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, ignored: set[nn.Parameter] | None = None
) -> None:
    """Shards the parameters of a module that belong to no unit yet, along ``shard_dim``."""

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shard_dim(parameter.shape, mesh.size()))

    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=ignored, shard_placement_fn=placement)
