"""The device meshes of a run: one of all ranks, and a table of replicas by expert groups; where weights are split.

The ranks of an expert group are neighbours, so their all-to-all stays within a machine that has enough devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from moekit.compat import timeout_of

WORLD = "world"
REPLICA, EXPERT = "replica", "expert"

_meshes: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, str], DeviceMesh]] = WeakKeyDictionary()


def world_mesh(device_type: str) -> DeviceMesh:
    """The one-dimensional mesh of all ranks; its dimension is ``world``.

    Collective: every rank calls it, in the same order among other such calls. Cached per default process group.

    Raises:
        RuntimeError: there is no process group.
    """
    return _mesh(0, device_type)


def expert_mesh(ep: int, device_type: str) -> DeviceMesh:
    """The mesh ``(replica, expert)``: rank = replica · ep + expert.

    A row is an expert group, whose ``ep`` ranks share the experts of a layer; the ranks of a column are replicas, which
    hold the same experts. Collective and cached, as ``world_mesh``. Its process groups have the default one's timeout.

    Raises:
        RuntimeError: there is no process group.
        ValueError: ``ep`` does not divide the number of ranks.
    """
    mesh_coordinate(ep)
    return _mesh(ep, device_type)


def mesh_coordinate(ep: int) -> tuple[int, int]:
    """This rank's ``(replica, expert)`` in ``expert_mesh``. Neither communicates nor creates a process group.

    Raises:
        RuntimeError, ValueError: as ``expert_mesh``.
    """
    _world_group()
    world = dist.get_world_size()
    if ep < 1 or world % ep:
        divisors = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        raise ValueError(f"ep={ep} does not divide the {world} ranks of this run; expected one of {divisors}")
    return divmod(dist.get_rank(), ep)


def _world_group() -> dist.ProcessGroup:
    if not dist.is_initialized() or dist.group.WORLD is None:
        raise RuntimeError(
            "no process group: call torch.distributed.init_process_group first; "
            "Lightning does so before it builds the model"
        )
    return dist.group.WORLD


def _mesh(ep: int, device_type: str) -> DeviceMesh:
    """The cached mesh with ``ep`` columns, or for 0 the one-dimensional one."""
    world = _world_group()
    cached = _meshes.setdefault(world, {})
    if (ep, device_type) not in cached:
        ranks = torch.arange(dist.get_world_size())
        if ep:
            table = ranks.reshape(-1, ep)
            # DeviceMesh would create groups with torch's default timeout instead of the run's.
            timeout, groups = timeout_of(world, torch.device(device_type)), []
            for lines in (table.T.tolist(), table.tolist()):
                group, _ = dist.new_subgroups_by_enumeration(lines, timeout=timeout)  # type: ignore[no-untyped-call]
                groups.append(group)  # of all these groups, the one that contains this rank
            mesh = DeviceMesh.from_group(groups, device_type, mesh=table, mesh_dim_names=(REPLICA, EXPERT))
        else:
            mesh = DeviceMesh.from_group(world, device_type, mesh=ranks, mesh_dim_names=(WORLD,))
        cached[ep, device_type] = mesh
    return cached[ep, device_type]


ROWS_PER_RANK = 8
"""From this many rows of the first dimension per rank on, shards of unequal size do not matter."""


def shard_dim(shape: Sequence[int], ranks: int) -> int:
    """The dimension along which to shard a weight: the first one if it is long, else the first that divides evenly.

    FSDP2's default, always the first, would leave ranks without a shard: the first dimension of stacked weights is
    experts, and a dense layer is stacked weights of one expert.
    """
    if not shape or shape[0] >= ROWS_PER_RANK * ranks:
        return 0
    return next((d for d, n in enumerate(shape) if n % ranks == 0), 0)
