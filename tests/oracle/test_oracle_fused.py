"""The fused dispatcher equals the loop in fp64, forward and every gradient, whatever it saves for backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit_dispatchers.fused import Fused, crew, walk
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

D, OUT, H = 6, 7, 5
F64 = torch.float64


def bank(kind: str, activation: Any, E: int) -> ExpertBank:
    dims = LayerDims(dim=D, num_experts=E, out_dim=OUT)
    if kind == "glu":
        return GluExperts(Glu(count=E, hidden=H, activation=activation), dims).double()
    return FfnExperts(Ffn(count=E, hidden=H, activation=activation), dims).double()


BANKS = [("glu", a) for a in ("silu", "gelu", "relu", "sigmoid")] + [("ffn", a) for a in ("relu", "gelu", "silu")]


def results(dispatcher: Dispatcher, x_TD: Tensor, routing: Routing, gate: Tensor, experts: ExpertBank) -> list[Tensor]:
    """The output, and gradients of tokens, gates and weights for an upstream gradient that is not constant."""
    y_TO = dispatcher(x_TD, routing, experts).y_TO
    weigh_TO = torch.linspace(-1, 2, y_TO.numel(), dtype=F64).reshape(y_TO.shape)
    leaves = [x_TD, gate, *experts.parameters()]
    grads = torch.autograd.grad(y_TO, leaves, weigh_TO, allow_unused=True, materialize_grads=True)
    return [y_TO.detach(), *grads]


def assert_equal(x_TD: Tensor, routing: Routing, gate: Tensor, experts: ExpertBank, save: Any) -> None:
    dims = LayerDims(dim=D, num_experts=experts.num_experts, out_dim=OUT)
    found = results(FusedDispatcher(Fused(save=save), dims), x_TD, routing, gate, experts)
    expected = results(LoopDispatcher(Loop(), dims), x_TD, routing, gate, experts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("save", ["all", "minimum", "nothing"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fused_equals_the_loop_on_token_choice(save: str, data: st.DataObject) -> None:
    T, E = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 6))
    K = data.draw(st.integers(1, E))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    expert_TK = torch.rand(T, E).argsort(1)[:, :K]
    if data.draw(st.booleans(), label="all on the same experts"):
        expert_TK = torch.arange(K).expand(T, K)
    valid_T = torch.rand(T) > 0.3 if data.draw(st.booleans(), label="padding") else None
    sent_TK = torch.rand(T, K) > 0.3 if data.draw(st.booleans(), label="unsent") else None
    x_TD, gate_TK = torch.randn(T, D, dtype=F64), torch.rand(T, K, dtype=F64)
    if valid_T is not None:
        x_TD[~valid_T] = torch.nan
        gate_TK[~valid_T] = torch.nan
    x_TD.requires_grad_()
    gate_TK.requires_grad_()
    zeros_TE = torch.zeros(T, E, dtype=F64)
    routing = TokenChoice(
        logits_TE=zeros_TE,
        scores_TE=zeros_TE,
        valid_T=valid_T,
        expert_TK=expert_TK,
        gate_TK=gate_TK,
        sent_TK=sent_TK,
    )
    kind, activation = data.draw(st.sampled_from(BANKS))
    block, narrow = walk.BLOCK, walk.NARROW
    walk.BLOCK, walk.NARROW = data.draw(st.sampled_from([1, 2, 5, 512]), label="rows of a block"), 1
    worth, crew.WORTH_A_CREW = crew.WORTH_A_CREW, data.draw(st.sampled_from([0, 1 << 60]), label="threads from")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_equal(x_TD, routing, gate_TK, bank(kind, activation, E), save)
    finally:
        walk.BLOCK, walk.NARROW, crew.WORTH_A_CREW = block, narrow, worth
        torch.set_num_threads(threads)


def test_fused_equals_the_loop_on_expert_choice_and_tokens_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    x_TD = torch.randn(2 * D, 9, dtype=F64)[::2].T.requires_grad_()
    gate_EC = torch.rand(4, 3, dtype=F64, requires_grad=True)
    zeros_TE = torch.zeros(9, 4, dtype=F64)
    token_EC = torch.stack([torch.randperm(9)[:3] for _ in range(4)])
    routing = ExpertChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, token_EC=token_EC, gate_EC=gate_EC)
    assert not x_TD.is_contiguous()
    assert_equal(x_TD, routing, gate_EC, bank("glu", "silu", 4), "minimum")
