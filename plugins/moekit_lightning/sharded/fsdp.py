"""Shards a model with FSDP2 (``torch.distributed.fsdp.fully_shard``), next to expert parallelism.

``expert_parallel`` distributes the routed experts of a layer over an expert group: each rank builds only its own. Those
are sharded again over the replicas, the ranks that hold the same experts. Every other parameter is sharded over all
ranks, or replicated. FSDP2 all-gathers parameters before use and reduce-scatters gradients.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from moekit.contracts import Model
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.parallel.mesh import REPLICA, expert_mesh, shard_dim, world_mesh
from moekit.shards import expert_parallel_layers


def shard(
    model: Model,
    ep: int,
    device_type: str,
    policy: MixedPrecisionPolicy | None = None,
    *,
    replicate_dense: bool = False,
    bank_dtype: torch.dtype | None = None,
) -> None:
    """Shards a model's parameters in place, on every rank.

    FSDP units, each all-gathered at once:

    * the experts of each expert-parallel layer, over its replicas, before the layer runs, so that dispatchers can use
      the weights without calling the experts module. Experts without replicas are not sharded.
    * the router and the shared experts of such a layer, over all ranks;
    * each module of ``model.stack()``, and what remains of the model, over all ranks.

    With ``replicate_dense``, experts alone are sharded, each layer's in a unit of its own; all else is left whole, and
    the caller sums its gradients over all ranks.

    The last block stays gathered until its backward. With ``ep`` above 1, the units of a block are all-gathered while
    the one before computes, and in backward likewise: FSDP2 alone would do so only as far as the host is ahead of the
    device, and there the host waits in every layer, to learn how many tokens to send. Blocks that only training runs
    are not gathered so in a forward pass: after an evaluation, what was gathered would be used when the weights differ.

    From then on ``backward`` sums gradients over the ranks that share a parameter; it does not average them.

    Args:
        model: the same on every rank, except for the routed experts.
        ep: size of an expert group.
        device_type: ``cpu`` or ``cuda``.
        policy: dtypes of all-gathers and of gradient reduction; default: the parameters' own.
        replicate_dense: whether parameters outside of routed experts stay whole on every rank.
        bank_dtype: autocast's dtype. Experts of standard form that are a unit are all-gathered in it: their weights
            have no other use than products, for which autocast rounds them. Their gradients are reduced in fp32.

    Raises:
        ValueError: a layer's experts are distributed over another number of ranks than ``ep``.
        MoekitError: experts have replicas, and a balancer or the dispatcher of such a layer has trained parameters.
    """
    policy = policy or MixedPrecisionPolicy()
    world = world_mesh(device_type)
    layers = list(expert_parallel_layers(model))
    _check_size(layers, ep)
    replicas = expert_mesh(ep, device_type)[REPLICA] if layers else world
    if replicate_dense and not layers:
        layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    experts = {p for layer in layers for p in layer.experts.parameters()}
    whole = set(experts) if replicas.size() == 1 else set()
    if replicate_dense:
        whole = whole.union(p for p in model.parameters() if p not in experts)
    units: list[tuple[nn.Module, DeviceMesh]] = []
    for layer in layers if replicas.size() > 1 else ():
        _check_parts(layer, whole)
        units += [(part, world) for part in (layer.router, layer.shared) if part is not None]
        units.append((layer, replicas))
    units += [(block, world) for block in model.stack()]
    held, sharded = set(whole), list[tuple[nn.Module, DeviceMesh, MixedPrecisionPolicy]]()
    rounded = MixedPrecisionPolicy(bank_dtype, torch.float32, cast_forward_inputs=False)
    for unit, mesh in (*units, (model, world)):
        new = set(unit.parameters()) - held
        held |= new
        bank = isinstance(unit, MoELayer) and new <= experts and unit.experts.standard_form() is not None
        if new or (unit is model and sharded):  # without parameters too, it is the root of all units
            sharded.append((unit, mesh, rounded if bank and bank_dtype is not None else policy))
    blocks = [_within(block, [unit for unit, *_ in sharded]) for block in model.stack()]
    blocks = [block for block in blocks if block]
    for unit, mesh, own in sharded:
        _fully_shard(unit, mesh, own, whole, keep=bool(blocks) and unit in blocks[-1])
    if ep > 1 and blocks:
        order = cast(list[list[FSDPModule]], [[model], *blocks])
        only_training: set[object] = {module for part in model.extra_parts().values() for module in part.modules()}
        for block, following in pairwise(order):
            if following[0] not in only_training:
                block[0].set_modules_to_forward_prefetch(following)
        for block, preceding in pairwise(reversed(order[1:])):
            block[0].set_modules_to_backward_prefetch(preceding)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _check_size(layers: list[MoELayer], ep: int) -> None:
    """Otherwise ranks with different experts would be sharded as replicas, or replicas would train apart."""
    for layer in layers:
        assert layer.dispatcher.local_experts is not None
        sharing = 0 if layer.spec is None else layer.spec.experts.count // len(layer.dispatcher.local_experts)
        if sharing not in (0, ep):
            raise ValueError(
                f"{sharing} ranks share the experts of a layer, whose dispatcher says so; expected ep={ep}"
            )


def _check_parts(layer: MoELayer, whole: set[nn.Parameter]) -> None:
    """Other parameters than those of units would be in the unit of the experts, and be summed over replicas alone.

    The unit of the block cannot have them: FSDP2 skips all that is within another unit.
    """
    for name, parameter in layer.named_parameters():
        part = name.partition(".")[0]
        if parameter.requires_grad and parameter not in whole and part not in ("experts", "router", "shared"):
            raise MoekitError(
                f"'{name}' of a mixture layer is trained, and its gradient would miss some ranks\n"
                "  expected ep to be 1 or the number of ranks, or dense=replicate"
            )


def _within(block: nn.Module, units: list[nn.Module]) -> list[nn.Module]:
    """The units in a block, the block itself first, if it is one."""
    inside = set(block.modules())
    return sorted((unit for unit in units if unit in inside), key=lambda unit: unit is not block)


def _fully_shard(
    module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy, ignored: set[nn.Parameter], *, keep: bool
) -> None:
    """Shards the parameters of a module that belong to no unit yet, along ``shard_dim``.

    With ``keep`` they stay gathered after the forward pass, as those of the root do.
    """

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shard_dim(parameter.shape, mesh.size()))

    fully_shard(
        module,
        mesh=mesh,
        reshard_after_forward=False if keep else None,
        mp_policy=policy,
        ignored_params=ignored,
        shard_placement_fn=placement,
    )
