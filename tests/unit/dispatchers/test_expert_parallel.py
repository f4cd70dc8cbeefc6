"""Experts split over ranks give the results of one process; in one process, the local dispatcher runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fake_plugins
import pytest
import torch
from fake_ranks import as_rank
from ranks import run_forked, run_ranks

from moekit import load
from moekit.component import Component
from moekit.contracts import ExpertBank, LayerDims
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.registry import build, temporary
from moekit.routing import TokenChoice
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import DispatcherSpec, ExpertSpec, MoE
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.expert_parallel import ExpertParallel, module
from moekit_dispatchers.expert_parallel.exchange import ExchangePlan, received
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.rows import ByToken
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.soft import Soft
from moekit_experts.glu import Glu
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.module import check_layout
from moekit_routers.dense import Dense
from moekit_routers.topk import TopK
from moekit_testing.fixtures.routings import some_routing

SCRIPT = Path(__file__).with_name("expert_parallel_run.py")
DIMS = LayerDims(dim=5, num_experts=4)


def test_two_ranks_equal_one_process() -> None:
    run_forked(SCRIPT, 2, "quick")


@pytest.mark.slow
def test_four_ranks_equal_one_process() -> None:
    """One group of four and two of two; every local dispatcher, dtype, padding, skewed loads, ranks without tokens."""
    run_ranks(SCRIPT, 4, "whole", timeout=900)


@pytest.mark.parametrize("local", [Loop(), Capacity(factor=0.6), Capacity(factor=0.6, per="sequence")], ids=str)
def test_in_one_process_the_local_dispatcher_runs(local: DispatcherSpec) -> None:
    spec = MoE(router=TopK(top_k=2), experts=Glu(count=4, hidden=3), dispatcher=ExpertParallel(size=2, local=local))
    layer = MoELayer.from_spec(spec, dim=5)
    assert layer.dispatcher.local_experts is None
    assert layer.experts.num_experts == 4
    x_TD, routing = torch.randn(9, 5), some_routing("token_choice", 9, 4, dtype=torch.float32)
    whole = build(local, DIMS)
    for sequences in (1, 3):
        out, plain = (d(x_TD, routing, layer.experts, num_sequences=sequences) for d in (layer.dispatcher, whole))
        assert torch.equal(out.y_TO, plain.y_TO)
        assert int(out.dropped) == int(plain.dropped) == int(layer.dispatcher.limit(routing, sequences)[1])


@pytest.mark.parametrize("local", [Loop(), Capacity(factor=0.6)], ids=str)
def test_received_rows_are_computed_by_a_dropless_dispatcher_of_this_ranks_experts(
    local: DispatcherSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drops are decided over all experts; received rows are computed for this rank's, and nothing drops again."""
    built: list[tuple[DispatcherSpec, LayerDims]] = []

    def recording_build(spec: DispatcherSpec, dims: LayerDims) -> Any:
        built.append((spec, dims))
        return build(spec, dims)

    monkeypatch.setattr(module, "build", recording_build)
    with as_rank(3):
        dispatcher = build(ExpertParallel(size=2, local=local), LayerDims(dim=6, num_experts=8, out_dim=5))
    assert dispatcher.local_experts == range(4, 8)
    computes = local if local.dropless else Auto()
    assert built[:2] == [
        (local, LayerDims(dim=6, num_experts=8, out_dim=5)),
        (computes, LayerDims(dim=6, num_experts=4, out_dim=5)),
    ]


def test_capabilities_are_those_of_the_local_dispatcher() -> None:
    assert ExpertParallel(local=Grouped()).forms == {"token_choice", "expert_choice"}
    assert ExpertParallel(local=Auto()).forms == {"token_choice", "expert_choice"}, "soft routings have no pairs"
    assert ExpertParallel(local=Capacity()).forms == {"token_choice"}
    assert ExpertParallel(local=Grouped()).dropless
    assert not ExpertParallel(local=Capacity()).dropless
    assert ExpertParallel(local=Grouped()).causal()
    assert not ExpertParallel(local=Capacity(order="affinity")).causal()


def test_conflicts_of_options_are_reported() -> None:
    with pytest.raises(ConflictError, match=re.escape("expert_parallel within expert_parallel; use one of them")):
        ExpertParallel(local=ExpertParallel(local=Loop()))
    with pytest.raises(ConflictError, match="dispatcher Soft takes soft, but ranks exchange token-expert pairs: use"):
        ExpertParallel(local=Soft())
    router, experts = TopK(top_k=2), Glu(count=4, hidden=3)
    with pytest.raises(ConflictError, match="size=3 of the dispatcher does not divide the 4 experts evenly: choose a"):
        MoE(router=router, experts=experts, dispatcher=ExpertParallel(size=3, local=Loop()))
    with pytest.raises(ConflictError, match="groups=3 of the dispatcher does not divide the 4 experts evenly"):
        local = DeviceCapacity(groups=3, inner=Loop())
        MoE(router=router, experts=experts, dispatcher=ExpertParallel(size=2, local=local))
    with pytest.raises(
        ConflictError, match="Dense routes by 'soft', but dispatcher ExpertParallel takes expert_choice"
    ):
        MoE(router=Dense(), experts=experts, dispatcher=ExpertParallel(local=Auto()))
    with pytest.raises(ValueError, match="size=3 of the dispatcher does not divide the 4 experts evenly"):
        build(ExpertParallel(size=3, local=Loop()), DIMS)


def test_received_rows_are_a_routing_whose_pairs_are_those_sent() -> None:
    """Three rows name two of four experts each; 4 is added to the number in an unused place."""
    number_TK = torch.tensor([[2, 4 + 0], [1, 3], [0, 4 + 1]], dtype=torch.int32)
    gate_TK = torch.tensor([[0.5, 0.0], [0.2, 0.3], [0.7, 0.0]])
    routing = received(number_TK, gate_TK, num_experts=4, num_pairs=4)
    assert isinstance(routing, TokenChoice)
    pairs = routing.pairs()
    assert pairs.token_N.tolist() == [0, 1, 1, 2]
    assert pairs.expert_N.tolist() == [2, 1, 3, 0]
    assert pairs.gate_N.tolist() == pytest.approx([0.5, 0.2, 0.3, 0.7])
    assert routing.load_E().tolist() == [1, 1, 1, 1]
    assert routing.expert_TK.tolist() == [[2, 0], [1, 3], [0, 1]], "distinct along K, sent or not"


def test_a_tokens_gradients_are_summed_in_its_own_dtype() -> None:
    """Under autocast rows have half precision, in which this sum would be 1."""
    first_N, rows_N, none_N1 = torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.zeros(2, 1)
    plan = ExchangePlan(
        send_counts=[1, 1], receive_counts=[], num_pairs=0, number_NC=none_N1, gate_NC=none_N1,
        by_token=ByToken(first_N, rows_N, torch.tensor([0, 2]), all_sent=True),
    )  # fmt: skip
    x_TD = torch.ones(1, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        x_ND = plan.rows(x_TD)
    assert x_ND.dtype == torch.bfloat16
    x_ND.backward(torch.tensor([1.0, 2**-9]).bfloat16()[:, None].expand(2, 3))
    assert x_TD.grad is not None and x_TD.grad.tolist() == [[1 + 2**-9] * 3]


class Zoo(ExpertSpec):
    """Experts of different kinds: two GLUs, and what ``count`` leaves as identities."""


def zoo(spec: Zoo, dims: LayerDims) -> ExpertBank:
    glu = [torch.nn.Linear(dims.dim, dims.dim) for _ in range(min(spec.count, 2))]
    return ExpertBank.from_modules([*glu, *(torch.nn.Identity() for _ in range(spec.count - 2))], dims.out_dim)


def test_experts_that_differ_are_not_shared_by_ranks() -> None:
    """Each rank would build the first experts of the list, and train another model."""
    offer = Component(name="zoo", spec=Zoo, target=zoo, summary="s")
    message = (
        r"ranks cannot share the 8 experts of ModuleExperts: 'experts.0.weight' is \[4, 4\], not stacked over experts"
    )
    with temporary(fake_plugins.module("zoos", components=[offer])):
        moe = MoE(router=TopK(top_k=2), experts=Zoo(count=8), dispatcher=ExpertParallel(local=Grouped()))
        MoELayer.from_spec(moe, dim=4)
        with as_rank(1), pytest.raises(MoekitError, match=message):
            MoELayer.from_spec(moe, dim=4)
        few = ["model.dim=4", "model.moe.router={use: topk, top_k: 2, groups: 1, top_groups: 1, group_score: max}"]
        few.append("model.moe.experts={use: zoo, count: 8}")
        recipe = load("deepseek_v3", few)
        check_layout(recipe, Sharded(ep=1), 2)
        with pytest.raises(MoekitError, match=message):
            check_layout(recipe, Sharded(ep=2), 2)
