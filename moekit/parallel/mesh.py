"""How the ranks of a run are laid out: one line of all, and a table of replicas by expert groups.

Ranks that share the experts of a layer are neighbours, so that their exchange stays within a machine as long as a
machine holds that many.
"""

from __future__ import annotations

from datetime import timedelta
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from moekit.compat import timeout_of

WORLD = "world"
REPLICA, EXPERT = "replica", "expert"

_made: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, str], DeviceMesh]] = WeakKeyDictionary()


def world_mesh(device_type: str) -> DeviceMesh:
    """All ranks in one line, dimension ``world``.

    Collective: every rank asks for it, in the same order among other such calls. Made once per process group.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``: where tensors laid out on it live.

    Raises:
        RuntimeError: there is no process group.
    """
    return _mesh(0, device_type)


def expert_mesh(ep: int, device_type: str) -> DeviceMesh:
    """The ranks as a table ``(replica, expert)``: rank = replica · ep + expert.

    The ``ep`` neighbours of a row share the experts of a layer; the ranks of a column hold the same experts.

    Collective, as ``world_mesh`` is; a second call with the same arguments returns the same mesh. Its groups wait for
    each other as long as the group of all ranks does.

    Args:
        ep: ranks that share the experts; a divisor of the number of ranks.
        device_type: as above.

    Raises:
        RuntimeError: there is no process group.
        ValueError: ``ep`` does not divide the number of ranks.
    """
    mesh_coordinate(ep)
    return _mesh(ep, device_type)


def mesh_coordinate(ep: int) -> tuple[int, int]:
    """This rank's ``(replica, expert)`` in that table. Communicates with nobody, and makes no group.

    Raises:
        RuntimeError, ValueError: as above.
    """
    _everyone()
    world = dist.get_world_size()
    if ep < 1 or world % ep:
        fits = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        raise ValueError(
            f"{ep} ranks cannot share the experts where {world} train together: choose a divisor of {world} ({fits})"
        )
    return divmod(dist.get_rank(), ep)


def _everyone() -> dist.ProcessGroup:
    """The group of all ranks."""
    if not dist.is_initialized() or dist.group.WORLD is None:
        raise RuntimeError(
            "no process group: several processes train together once torch.distributed.init_process_group was called; "
            "Lightning does so before it builds the model"
        )
    return dist.group.WORLD


def _mesh(ep: int, device_type: str) -> DeviceMesh:
    """The table of ``ep`` columns, or for 0 the line of all; made when first asked for."""
    everyone = _everyone()
    made = _made.setdefault(everyone, {})
    if (ep, device_type) not in made:
        made[ep, device_type] = _make(everyone, ep, device_type)
    return made[ep, device_type]


def _make(everyone: dist.ProcessGroup, ep: int, device_type: str) -> DeviceMesh:
    """Groups made here and not by DeviceMesh, which would give them torch's own timeout in place of the run's."""
    line = torch.arange(dist.get_world_size())
    if not ep:
        return DeviceMesh.from_group(everyone, device_type, mesh=line, mesh_dim_names=(WORLD,))
    table = line.reshape(-1, ep)
    timeout = timeout_of(everyone, torch.device(device_type))
    groups = [_own_group(lines.tolist(), timeout) for lines in (table.T, table)]
    return DeviceMesh.from_group(groups, device_type, mesh=table, mesh_dim_names=(REPLICA, EXPERT))


def _own_group(lines: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """Makes a group of each line of ranks; the one that this rank stands in."""
    group, _ = dist.new_subgroups_by_enumeration(lines, timeout=timeout)  # type: ignore[no-untyped-call]
    return cast(dist.ProcessGroup, group)
