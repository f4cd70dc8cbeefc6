"""How parameters lie, as four ranks see it one after the other; and what is sent for many sums at once."""

from __future__ import annotations

from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from fake_ranks import WORLD, as_rank
from torch import Tensor, nn

from moekit.contracts import Model
from moekit.layer import MoELayer
from moekit.parallel.sharding import shard
from moekit.shards.layout import ParameterLayout, PartialSum, all_reduce_sums, parameter_layouts
from moekit.spec.kinds import MoE
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
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
    ("ep", "bank"),
    [(1, [(0, [0, 1, 2, 3])]), (2, [(0, [1, 3]), (0, [0, 1])]), (4, [(0, [0, 1, 2, 3])])],
)
def test_who_has_the_other_parts(ep: int, bank: list[tuple[int, list[int]]]) -> None:
    """Rank 1: experts are dealt out among neighbours, and a rank's own cut among those that have the same."""
    with as_rank(1):
        model = Net(ep)
        shard(cast(Model, model), ep, "cpu")
        lies = parameter_layouts(model)

        def cuts(p: nn.Parameter) -> list[tuple[int, list[int]]]:
            return [(dim, dist.get_process_group_ranks(group)) for dim, group in lies[p].cuts]

        experts = model.layer.experts
        w_EOH, scale_EH = experts.get_parameter("w_down_EOH"), experts.get_parameter("scale_EH")
        assert cuts(w_EOH) == cuts(scale_EH) == bank and cuts(model.across) == [(1, list(range(WORLD)))]
        assert lies[w_EOH].shape == (4, 5, 6) and lies[scale_EH].shape == (4, 6)  # of all experts
        assert lies[w_EOH].groups_along(-1) == lies[w_EOH].groups_along(1) == () and len(
            lies[w_EOH].groups_along()
        ) == len(bank)
        assert (
            lies[scale_EH].groups_along(-2) == lies[scale_EH].groups_along() and lies[scale_EH].groups_along(-1) == ()
        )
        assert (
            lies[model.across].groups_along(-1) == lies[model.across].groups_along(1, 0)
            and lies[model.across].groups_along(-2) == ()
        )


def test_a_plain_model_lies_whole() -> None:
    model = nn.Linear(3, 2)
    assert parameter_layouts(model) == {model.weight: ParameterLayout((2, 3)), model.bias: ParameterLayout((2,))}


def test_one_message_for_all_sums_of_a_group_and_dtype() -> None:
    one, other = cast(dist.ProcessGroup, "one"), cast(dist.ProcessGroup, "other")
    sent: list[tuple[Any, list[float]]] = []

    def twice(message: Tensor, group: Any) -> None:  # two ranks that have the same
        sent.append((group, message.tolist()))
        message.mul_(2)

    a, b, c, d = torch.tensor(1.0), torch.tensor([[2.0], [3.0]]), torch.tensor([4.0]), torch.tensor(5.0).double()
    sums: list[PartialSum] = [(a, (one, other)), (b, (one,)), (c, ()), (torch.zeros(0, 3), (one,)), (d, (one,))]
    with mock.patch.object(dist, "all_reduce", twice):
        all_reduce_sums(sums)
    assert sent == [("one", [1.0, 2.0, 3.0]), ("other", [2.0]), ("one", [5.0])]
    assert (a.item(), b.tolist(), c.item(), d.item()) == (4.0, [[4.0], [6.0]], 4.0, 10.0)
