"""A layer whose gates multiply the experts' inputs, against a loop over tokens, in fp64: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from agreement import assert_agree
from torch import Tensor

from moekit import ExpertBank, MoELayer, TokenChoice
from moekit.spec.kinds import DispatcherSpec, MoE
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_experts.glu.naive import naive_glu
from moekit_routers.topk import TopK

D = 3


@pytest.mark.parametrize("dispatcher", [Loop(), Grouped(), Capacity(factor=4.0)], ids=["loop", "grouped", "capacity"])
def test_a_gate_on_the_input_scales_what_its_expert_reads_and_not_what_it_returns(dispatcher: DispatcherSpec) -> None:
    spec = MoE(
        router=TopK(top_k=1, score="sigmoid", score_over="chosen"),
        experts=Glu(count=3, hidden=4),
        shared=Glu(count=1, hidden=5),
        dispatcher=dispatcher,
        gate_on="input",
    )
    layer = MoELayer.from_spec(spec, D).double()
    x_TD = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    y_TD, report = layer(x_TD)
    routing = report.routing
    assert isinstance(routing, TokenChoice) and (routing.gate_TK < 1).all()  # the report keeps the router's gates
    z_TE = x_TD @ layer.router.weight_ED.T
    gate_T1, expert_T = z_TE.max(-1, keepdim=True).values.sigmoid(), z_TE.argmax(-1)
    expected_TD = naive(layer.experts, x_TD * gate_T1, expert_T) + naive(layer.shared, x_TD, torch.zeros(7).long())
    assert_agree(y_TD, expected_TD, {"x": x_TD, **dict(layer.named_parameters())})


def naive(bank: ExpertBank | None, x_TD: Tensor, expert_T: Tensor) -> Tensor:
    assert isinstance(bank, GluExperts)
    gate, up = bank.w_gate_up_EHD.chunk(2, dim=1)
    return naive_glu(x_TD, expert_T, gate, up, bank.w_down_EOH, "silu")
