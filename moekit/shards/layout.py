"""How parameters lie over ranks: which of their dimensions are cut, and between whom.

For optimizers that look at more than one number at a time: what they sum along a dimension that is cut is added up over
the ranks between whom it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from moekit.parallel.mesh import EXPERT, expert_mesh
from moekit.shards.shard import expert_parallel_layers, parameter_shards


@dataclass(frozen=True)
class ParameterLayout:
    """How a parameter lies.

    Attributes:
        shape: of the whole.
        cuts: dimensions that are cut, each with the ranks that hold the parts. Experts that are dealt out and cut again
            among the ranks that have the same make two, perhaps of one dimension. None where this rank holds it whole.
    """

    shape: tuple[int, ...]
    cuts: tuple[tuple[int, dist.ProcessGroup], ...] = ()

    def groups_along(self, *dims: int) -> tuple[dist.ProcessGroup, ...]:
        """The ranks over which a sum along these dimensions is to be added up, group after group; all dims if none."""
        along = {dim % len(self.shape) for dim in dims} or range(len(self.shape))
        return tuple(group for dim, group in self.cuts if dim in along)


def parameter_layouts(module: nn.Module) -> dict[nn.Parameter, ParameterLayout]:
    """How each parameter lies. Collective where anything is in shards: the first call may make process groups.

    Args:
        module: a plain model, or one that ``shard`` has cut up.
    """
    dealt = {}
    for layer in expert_parallel_layers(module):
        assert layer.dispatcher.local_experts is not None and layer.spec is not None
        ep = layer.spec.experts.count // len(layer.dispatcher.local_experts)
        for p in layer.experts.parameters():
            dealt[p] = expert_mesh(ep, p.device.type).get_group(EXPERT)
    found = {}
    for box, p in zip(parameter_shards(module).values(), module.parameters(), strict=True):
        cuts = list(_cuts(p)) + ([(0, dealt[p])] if p in dealt else [])
        found[p] = ParameterLayout(box.global_shape, tuple(cut for cut in cuts if cut[1].size() > 1))
    return found


def _cuts(p: nn.Parameter) -> Iterable[tuple[int, dist.ProcessGroup]]:
    if isinstance(p, DTensor):
        for mesh_dim, placement in enumerate(p.placements):
            if isinstance(placement, Shard):
                yield placement.dim, p.device_mesh.get_group(mesh_dim)


PartialSum = tuple[Tensor, tuple[dist.ProcessGroup, ...]]
"""What this rank has summed, and the groups over which that is to be added up, one after the other."""


def all_reduce_sums(sums: Iterable[PartialSum]) -> None:
    """Adds up over ranks, in place: one message a group, whatever the number of tensors; one more for each dtype.

    Collective: the ranks of a group bring tensors of the same shapes in the same order.

    Args:
        sums: tensors; no two share memory.
    """
    wanted: dict[tuple[dist.ProcessGroup, torch.dtype], list[Tensor]] = {}
    for tensor, groups in sums:
        for group in groups:
            wanted.setdefault((group, tensor.dtype), []).append(tensor)
    for (group, _), tensors in wanted.items():
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message, group=group)
        totals = message.split_with_sizes([tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))
