"""Layouts of parameters, seen from one of four simulated ranks; and the messages of many all-reduces."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.distributed as dist
from fake_ranks import WORLD, as_rank
from torch import nn

from moekit.contracts import Model
from moekit.moe_layer import MoELayer
from moekit.spec.kinds import MoE
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_lightning.sharded.fsdp import shard
from moekit_optimizers.layout import ParameterLayout, parameter_layouts
from moekit_routers.topk import TopK


class Net(nn.Module):
    def __init__(self, ep: int) -> None:
        super().__init__()
        own = ExpertParallel(size=ep, local=Grouped()) if ep > 1 else Grouped()
        self.layer = MoELayer.from_spec(
            MoE(router=TopK(top_k=1), experts=Glu(count=4, hidden=6, scale_bias=True), dispatcher=own), dim=5
        )
        self.across = nn.Parameter(torch.zeros(3, 8))

    def stack(self) -> list[nn.Module]:
        return []


@pytest.mark.parametrize(
    ("ep", "experts"),
    [(1, [(0, [0, 1, 2, 3])]), (2, [(0, [1, 3]), (0, [0, 1])]), (4, [(0, [0, 1, 2, 3])])],
)
def test_a_layout_names_the_ranks_that_share_each_dimension(ep: int, experts: list[tuple[int, list[int]]]) -> None:
    """Seen from rank 1: experts are distributed over neighbours, and sharded over the ranks that hold the same ones."""
    with as_rank(1):
        model = Net(ep)
        shard(cast(Model, model), ep, "cpu")
        layouts = parameter_layouts(model)
        bank = model.layer.experts
        w_EOH, scale_EH = (layouts[bank.get_parameter(name)] for name in ("w_down_EOH", "scale_EH"))
        across = layouts[model.across]

        def ranks(layout: ParameterLayout) -> list[tuple[int, list[int]]]:
            return [(dim, dist.get_process_group_ranks(group)) for dim, group in layout.sharded_dims]

        assert ranks(w_EOH) == ranks(scale_EH) == experts and ranks(across) == [(1, list(range(WORLD)))]
        assert w_EOH.shape == (4, 5, 6) and scale_EH.shape == (4, 6)  # of all experts
        assert w_EOH.groups_along(-1) == w_EOH.groups_along(1) == () and len(w_EOH.groups_along()) == len(experts)
        assert scale_EH.groups_along(-2) == scale_EH.groups_along() and scale_EH.groups_along(-1) == ()
        assert across.groups_along(-1) == across.groups_along(1, 0) and across.groups_along(-2) == ()


def test_a_plain_model_has_no_sharded_dimension() -> None:
    model = nn.Linear(3, 2)
    assert parameter_layouts(model) == {model.weight: ParameterLayout((2, 3)), model.bias: ParameterLayout((2,))}
