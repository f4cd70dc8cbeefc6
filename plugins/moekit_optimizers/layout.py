"""The layout of a model: along which dimensions each parameter is sharded, and over which ranks.

For optimizers that reduce over a whole tensor, such as Adafactor: a sum along a sharded dimension has to be all-reduced
over the ranks that share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from moekit.parallel.mesh import EXPERT, expert_mesh
from moekit.shards import expert_parallel_layers, parameter_shards


@dataclass(frozen=True)
class ParameterLayout:
    """How a parameter is sharded.

    Attributes:
        shape: of the global tensor.
        sharded_dims: each sharded dimension, with the process group that shares it; empty where this rank holds the
            whole parameter. Experts that are distributed over an expert group and sharded again over its replicas have
            two entries, perhaps of one dimension.
    """

    shape: tuple[int, ...]
    sharded_dims: tuple[tuple[int, dist.ProcessGroup], ...] = ()

    def groups_along(self, *dims: int) -> tuple[dist.ProcessGroup, ...]:
        """The process groups over which a sum along ``dims`` (default: all) must be all-reduced, one after another."""
        along = {dim % len(self.shape) for dim in dims} or range(len(self.shape))
        return tuple(group for dim, group in self.sharded_dims if dim in along)


def parameter_layouts(module: nn.Module) -> dict[nn.Parameter, ParameterLayout]:
    """The layout of each parameter. Collective for a sharded model: the first call may create process groups."""
    expert_groups = {}
    for layer in expert_parallel_layers(module):
        assert layer.dispatcher.local_experts is not None and layer.spec is not None
        ep = layer.spec.experts.count // len(layer.dispatcher.local_experts)
        for p in layer.experts.parameters():
            expert_groups[p] = expert_mesh(ep, p.device.type).get_group(EXPERT)
    layouts = {}
    for shard, p in zip(parameter_shards(module).values(), module.parameters(), strict=True):
        dims = _placements(p) + ([(0, expert_groups[p])] if p in expert_groups else [])
        layouts[p] = ParameterLayout(shard.global_shape, tuple((dim, group) for dim, group in dims if group.size() > 1))
    return layouts


def _placements(p: nn.Parameter) -> list[tuple[int, dist.ProcessGroup]]:
    if not isinstance(p, DTensor):
        return []
    placements = enumerate(p.placements)
    return [(each.dim, p.device_mesh.get_group(i)) for i, each in placements if isinstance(each, Shard)]
