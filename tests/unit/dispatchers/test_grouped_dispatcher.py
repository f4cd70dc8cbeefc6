from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.contracts import ExpertBank, LayerDims
from moekit.routing import Pairs, TokenChoice
from moekit_dispatchers.grouped import Grouped, ops
from moekit_dispatchers.grouped import rows as movers
from moekit_dispatchers.grouped.module import GroupedDispatcher, GroupedGroups, sort_pairs
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, E, K = 23, 8, 5, 2
DIMS = LayerDims(dim=D, num_experts=E)
GROUPED = GroupedDispatcher(Grouped(), DIMS)


def routing(valid_T: Tensor | None = None, tokens: int = T) -> TokenChoice:
    zeros_TE = torch.zeros(tokens, E)
    gate_TK = torch.rand(tokens, K, requires_grad=True)
    expert_TK = torch.rand(tokens, E).topk(K).indices
    return TokenChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, valid_T=valid_T, expert_TK=expert_TK, gate_TK=gate_TK)


# ---- sorting ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_sorted_pairs_list_every_pair_by_expert_and_by_token(data: st.DataObject) -> None:
    num_tokens, num_experts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    experts = data.draw(st.lists(st.integers(0, num_experts), max_size=20))
    tokens = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=len(experts), max_size=len(experts)))
    expert_N, token_N = torch.tensor(experts, dtype=torch.int64), torch.tensor(tokens, dtype=torch.int64)
    rows = sort_pairs(Pairs(token_N, expert_N, torch.ones(len(experts))), num_tokens, num_experts)

    # Sorted by expert, in the order given; pairs that go nowhere (expert E) last.
    assert rows.pair_N.tolist() == sorted(range(len(experts)), key=lambda n: (experts[n], n))
    assert rows.expert_N.tolist() == sorted(experts)
    assert rows.by_token.token_N.tolist() == [tokens[n] for n in rows.pair_N.tolist()]
    assert rows.end_E.dtype == torch.int32
    assert rows.end_E.tolist() == [sum(x <= e for x in experts) for e in range(num_experts)]

    # Each token's bag holds exactly its rows.
    starts, by_token = rows.by_token.start_T.tolist(), rows.by_token.by_token_N.tolist()
    assert sorted(by_token) == list(range(len(experts))) and len(starts) == num_tokens + 1
    for t in range(num_tokens):
        bag = {rows.pair_N.tolist()[row] for row in by_token[starts[t] : starts[t + 1]]}
        assert bag == {n for n in range(len(experts)) if tokens[n] == t and experts[n] < num_experts}


@pytest.mark.parametrize("num", [2**15 - 1, 2**15, 2**15 + 3])
def test_sorting_works_for_more_tokens_than_16_bits_hold(num: int) -> None:
    token_N = torch.arange(num).flip(0)
    rows = sort_pairs(Pairs(token_N, torch.zeros(num, dtype=torch.int64), torch.ones(num)), num, 1)
    assert torch.equal(rows.by_token.by_token_N, token_N) and torch.equal(rows.by_token.start_T, torch.arange(num + 1))


# ---- groups -------------------------------------------------------------------------------------------------------


def test_per_row_and_split_skip_rows_without_an_expert() -> None:
    groups = GroupedGroups(torch.tensor([0, 0, 2, 3]), torch.tensor([2, 2, 3], dtype=torch.int32))
    assert (groups.num_experts, groups.num_rows) == (3, 4)
    assert groups.per_row(torch.tensor([7.0, 8.0, 9.0])).tolist() == [7, 7, 9, 0]
    assert groups.per_row(torch.ones(3, 2, 2)).shape == (4, 2, 2)
    assert [len(part) for part in groups.split(torch.zeros(4, 1))] == [2, 0, 1]


def test_autocast_casts_input_weight_and_bias() -> None:
    groups = GroupedGroups(torch.tensor([0, 0, 1]), torch.tensor([2, 3], dtype=torch.int32))
    x_ND, w_EHD, b_EH = torch.randn(3, 8), torch.randn(2, 8, 8, requires_grad=True), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y_NH = groups.linear(x_ND, w_EHD, b_EH)
    low_NH = groups.linear(x_ND.bfloat16(), w_EHD.bfloat16(), b_EH.bfloat16())
    assert y_NH.dtype == torch.bfloat16 and torch.equal(y_NH, low_NH)
    (g_EHD,) = torch.autograd.grad(y_NH.sum(), w_EHD)
    assert g_EHD.dtype == torch.float32


# ---- the dispatcher -----------------------------------------------------------------------------------------------


def test_inputs_and_upstream_gradients_are_not_changed() -> None:
    routed, x_TD = routing(torch.rand(T) > 0.3), torch.randn(T, D, requires_grad=True)
    tensors = [x_TD, routed.gate_TK, routed.expert_TK, routed.scores_TE]
    before = [t.detach().clone() for t in tensors]
    y_TD = GROUPED(x_TD, routed, GluExperts(Glu(count=E, hidden=8), DIMS)).y_TO
    g_TD = torch.randn(T, D)
    upstream = g_TD.clone()
    y_TD.backward(g_TD)
    assert torch.equal(g_TD, upstream)
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(now.detach(), then)


class Inverse(ExpertBank):
    """A bank that gives infinity for rows without an expert, which hold zeros."""

    num_experts, out_dim = E, D

    def forward(self, x_ND: Tensor, groups: object) -> Tensor:
        return 1 / x_ND


@pytest.mark.parametrize("on_host", [True, False])
def test_outputs_for_rows_without_an_expert_reach_nothing(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "on_host", lambda t: on_host)
    monkeypatch.setattr(ops, "on_host", lambda t: on_host)
    valid_T = torch.arange(T) % 2 == 0
    routed, x_TD = routing(valid_T), torch.rand(T, D) + 0.5
    x_TD[~valid_T] = torch.nan
    x_TD.requires_grad_()
    y_TD = GROUPED(x_TD, routed, Inverse()).y_TO
    want_TD = routed.gate_TK.sum(1, keepdim=True) / x_TD
    torch.testing.assert_close(y_TD[valid_T], want_TD[valid_T])
    assert not y_TD[~valid_T].any()
    for grad in torch.autograd.grad(y_TD.sum(), (routed.gate_TK, x_TD)):
        assert bool(grad[valid_T].isfinite().all()) and bool(grad[valid_T].all()) and not grad[~valid_T].any()


@pytest.mark.parametrize("bias", [False, True])
def test_the_path_of_gpus_equals_the_loop(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 on the path that a GPU takes, forward and every gradient."""
    monkeypatch.setattr(movers, "on_host", lambda t: False)
    monkeypatch.setattr(ops, "on_host", lambda t: False)
    valid_T = torch.rand(T) > 0.3
    routed, x_TD = routing(valid_T), torch.randn(T, D, requires_grad=True)
    bank = FfnExperts(Ffn(count=E, hidden=7, activation="gelu", bias=bias), DIMS)
    results = []
    for dispatcher in (GROUPED, LoopDispatcher(Loop(), DIMS)):
        y_TD = dispatcher(x_TD, routed, bank).y_TO
        results.append((y_TD, *torch.autograd.grad(y_TD.square().sum(), [x_TD, routed.gate_TK, *bank.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_recomputation_changes_nothing() -> None:
    routed, x_TD, bank = routing(), torch.randn(T, D, requires_grad=True), GluExperts(Glu(count=E, hidden=8), DIMS)
    leaves = [x_TD, routed.gate_TK, *bank.parameters()]
    y_TD = GROUPED(x_TD, routed, bank).y_TO
    again_TD = checkpoint(lambda x: GROUPED(x, routed, bank).y_TO, x_TD, use_reentrant=False)
    once = torch.autograd.grad(y_TD.square().sum(), leaves)
    for ours, theirs in zip(torch.autograd.grad(again_TD.square().sum(), leaves), once, strict=True):
        assert torch.equal(ours, theirs)


def test_under_autocast_rows_are_saved_in_its_dtype_and_only_what_backward_needs() -> None:
    """Bytes of a pair: rows 2·D, first product 2·2H, activation and hidden layer 2·H each, output 2·O, gate 4."""
    saved: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.ndim < 3:  # weights have three dimensions
            saved.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    H, bank, x_TD, routed = (
        6,
        GluExperts(Glu(count=E, hidden=6), DIMS),
        torch.randn(T, D, requires_grad=True),
        routing(),
    )
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y_TD = GROUPED(x_TD, routed, bank).y_TO
    assert y_TD.dtype == torch.bfloat16
    pair = 2 * D + 2 * 2 * H + 2 * H + 2 * H + 2 * D + 4
    assert sum(t.untyped_storage().nbytes() for t in saved.values()) == T * K * pair

    saved.clear()
    fixed = dataclasses.replace(routed, gate_TK=routed.gate_TK.detach())
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        GROUPED(x_TD, fixed, bank)
    assert sum(t.untyped_storage().nbytes() for t in saved.values()) == T * K * (pair - 2 * D), "no gate, no output"
