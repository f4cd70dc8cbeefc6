"""Dispatchers equal their references in fp64, forward and every gradient, on hand-made routings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from devices import on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import UniformGroups
from moekit.registry import build
from moekit.routing import ExpertChoice, Pairs, Routing, Soft, TokenChoice, pairs_of
from moekit_dispatchers.fused import Fused, blockwise, thread_pool
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_dispatchers.soft import Soft as SoftSpec
from moekit_dispatchers.soft.module import SoftDispatcher
from moekit_dispatchers.soft.naive import naive_blend, naive_slots
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_experts.linear import Logistic
from moekit_experts.linear.module import LinearExperts

D, O = 6, 7  # noqa: E741
F64 = torch.float64
LOOP = LoopDispatcher(Loop(), LayerDims(dim=D, num_experts=1))
GROUPED = GroupedDispatcher(Grouped(), LayerDims(dim=D, num_experts=1))
SOFT = SoftDispatcher(SoftSpec(), LayerDims(dim=D, num_experts=1))


# ---- hand-made routings and banks --------------------------------------------------------------------------------


def scores(T: int, E: int) -> dict[str, Tensor]:
    return {"logits_TE": torch.zeros(T, E, dtype=F64), "scores_TE": torch.zeros(T, E, dtype=F64)}


def token_choice(expert_TK: Tensor, E: int, valid_T: Tensor | None = None) -> TokenChoice:
    gate_TK = torch.rand(expert_TK.shape, dtype=F64)
    if valid_T is not None:
        gate_TK[~valid_T] = torch.nan
    T = expert_TK.shape[0]
    return TokenChoice(**scores(T, E), valid_T=valid_T, expert_TK=expert_TK, gate_TK=gate_TK.requires_grad_())


def expert_choice(token_EC: Tensor, T: int, valid_T: Tensor | None = None) -> ExpertChoice:
    gate_EC = torch.rand(token_EC.shape, dtype=F64)
    if valid_T is not None:
        gate_EC[~valid_T[token_EC]] = torch.nan
    E = token_EC.shape[0]
    return ExpertChoice(**scores(T, E), valid_T=valid_T, token_EC=token_EC, gate_EC=gate_EC.requires_grad_())


def any_experts(T: int, E: int, K: int, among: int | None = None) -> Tensor:
    return torch.rand(T, among or E).topk(K, dim=1).indices


def any_tokens(T: int, E: int, C: int) -> Tensor:
    return torch.rand(E, T).topk(C, dim=1).indices


def padding(T: int) -> Tensor:
    return torch.arange(T) % 3 != 1


CASES = {
    "odd": lambda: token_choice(any_experts(13, 5, 2), 5),
    "one token": lambda: token_choice(any_experts(1, 5, 2), 5),
    "no token": lambda: token_choice(any_experts(0, 5, 2), 5),
    "K=1": lambda: token_choice(any_experts(9, 4, 1), 4),
    "K=E": lambda: token_choice(any_experts(9, 4, 4), 4),
    "one expert": lambda: token_choice(any_experts(9, 1, 1), 1),
    "idle experts": lambda: token_choice(any_experts(9, 6, 2, among=3), 6),
    "all on the last": lambda: token_choice(torch.full((9, 1), 4), 5),
    "padding": lambda: token_choice(any_experts(13, 5, 2), 5, padding(13)),
    "only padding": lambda: token_choice(any_experts(7, 5, 2), 5, torch.zeros(7, dtype=torch.bool)),
    "experts choose": lambda: expert_choice(any_tokens(13, 5, 3), 13),
    "experts choose one": lambda: expert_choice(any_tokens(8, 3, 1), 8),
    "experts choose all": lambda: expert_choice(any_tokens(8, 3, 8), 8),
    "experts choose none": lambda: expert_choice(any_tokens(0, 3, 0), 0),
    "experts choose the same": lambda: expert_choice(torch.tensor([[2, 0], [2, 0], [0, 2]]), 8),
    "experts choose padding": lambda: expert_choice(any_tokens(13, 5, 4), 13, padding(13)),
}


def ffn_bank(E: int, width: int = D, out: int = O) -> ExpertBank:
    dims = LayerDims(dim=width, num_experts=E, out_dim=out)
    return FfnExperts(Ffn(count=E, hidden=5, activation="silu", bias=True), dims).double()


def glu_bank(E: int) -> ExpertBank:
    return GluExperts(Glu(count=E, hidden=5), LayerDims(dim=D, num_experts=E, out_dim=O)).double()


def module_bank(E: int) -> ExpertBank:
    return ExpertBank.from_modules([torch.nn.Linear(D, O, dtype=F64) for _ in range(E)], O)


BANKS = {"ffn": ffn_bank, "glu": glu_bank, "modules": module_bank}


def tokens(T: int, valid_T: Tensor | None, width: int = D) -> Tensor:
    x_TD = torch.randn(T, width, dtype=F64)
    if valid_T is not None:
        x_TD[~valid_T] = torch.nan
    return x_TD.requires_grad_()


def gates(routing: Routing) -> Tensor:
    return routing.gate_TK if isinstance(routing, TokenChoice) else routing.gate_EC


# ---- comparison ---------------------------------------------------------------------------------------------------


def run(dispatcher: Dispatcher, x_TD: Tensor, routing: Routing, bank: ExpertBank) -> list[Tensor]:
    """The output, and gradients of all leaves that require one, for a fixed upstream gradient."""
    out = dispatcher(x_TD, routing, bank)
    assert out.dropped.shape == () and out.dropped.dtype == torch.int64 and int(out.dropped) == 0
    y_TO = out.y_TO
    leaves = [t for t in (x_TD, gates(routing), *bank.parameters()) if t.requires_grad]
    if not leaves:
        return [y_TO]
    g_TO = torch.linspace(-1, 2, y_TO.numel(), dtype=F64).cos().reshape(y_TO.shape)
    grads = torch.autograd.grad(y_TO, leaves, g_TO, allow_unused=True, materialize_grads=True)
    return [y_TO.detach(), *grads]


def assert_same(ours: list[Tensor], oracle: list[Tensor]) -> None:
    """Equal to 1e-12 of each tensor's largest element, or of 1e-3; no NaN."""
    for a, b in zip(ours, oracle, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        size = float(b.detach().abs().max()) if b.numel() else 0.0
        # A tensor may be one number that cancels, as the gradient of a gate.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(size, 1e-3) if size else 0)


def one_by_one(x_TD: Tensor, routing: Routing, bank: ExpertBank) -> Tensor:
    """``y_t = sum of gate · expert(x_t)``, pair by pair, each expert run on one row alone."""
    pairs = pairs_of(routing)
    E = bank.num_experts
    y: list[Tensor] = [torch.zeros(bank.out_dim, dtype=F64) for _ in x_TD]
    for t, e, gate in zip(pairs.token_N.tolist(), pairs.expert_N.tolist(), pairs.gate_N, strict=True):
        if e < E:
            rows_ED = x_TD[t].expand(E, -1)  # every expert gets the row; only e's output is used
            y[t] = y[t] + gate * bank(rows_ED, UniformGroups(E, E))[e]
    return torch.stack(y) if y else x_TD.new_zeros(0, bank.out_dim)


@pytest.mark.parametrize("case", CASES)
def test_loop_equals_pair_by_pair(case: str) -> None:
    routing = CASES[case]()
    x_TD, bank = tokens(routing.scores_TE.shape[0], routing.valid_T), ffn_bank(routing.num_experts)
    want_TO = one_by_one(x_TD, routing, bank)
    leaves = [x_TD, gates(routing), *bank.parameters()]
    g_TO = torch.linspace(-1, 2, want_TO.numel(), dtype=F64).cos().reshape(want_TO.shape)
    grads = [torch.zeros_like(leaf) for leaf in leaves]
    if want_TO.requires_grad:
        grads = list(torch.autograd.grad(want_TO, leaves, g_TO, allow_unused=True, materialize_grads=True))
    assert_same(run(LOOP, x_TD, routing, bank), [want_TO.detach(), *grads])


@on_each_device
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("case", CASES)
def test_grouped_equals_loop(case: str, bank: str) -> None:
    routing = CASES[case]()
    x_TD, experts = tokens(routing.scores_TE.shape[0], routing.valid_T), BANKS[bank](routing.num_experts)
    ours = run(GROUPED, x_TD, routing, experts)
    assert_same(ours, run(LOOP, x_TD, routing, experts))
    if routing.valid_T is not None:
        assert not ours[0][~routing.valid_T].any() and not ours[1][~routing.valid_T].any()


@on_each_device
@pytest.mark.parametrize("case", ["odd", "padding", "experts choose"])
def test_grouped_equals_loop_on_views(case: str) -> None:
    routing = CASES[case]()
    wide = torch.randn(2 * D, routing.scores_TE.shape[0], dtype=F64)
    x_TD = wide.T[:, ::2].requires_grad_()
    assert not x_TD.is_contiguous()
    bank = ffn_bank(routing.num_experts)
    assert_same(run(GROUPED, x_TD, routing, bank), run(LOOP, x_TD, routing, bank))


@pytest.mark.parametrize("frozen", ["input", "gates", "weights", "input and gates", "down", "everything"])
def test_grouped_equals_loop_when_parts_are_frozen(frozen: str) -> None:
    routing = CASES["padding"]()
    x_TD, bank = tokens(13, routing.valid_T), ffn_bank(5)
    if frozen in ("input", "input and gates", "everything"):
        x_TD.requires_grad_(False)
    if frozen in ("gates", "input and gates", "everything"):
        routing = replace(routing, gate_TK=routing.gate_TK.detach())
    for name, parameter in bank.named_parameters():
        if frozen in ("weights", "everything") or frozen in name:
            parameter.requires_grad_(False)
    ours = run(GROUPED, x_TD, routing, bank)
    assert len(ours) == 1 + sum(t.requires_grad for t in (x_TD, routing.gate_TK, *bank.parameters()))
    assert_same(ours, run(LOOP, x_TD, routing, bank))


@dataclass(frozen=True, kw_only=True)
class Dropping(TokenChoice):
    """A routing some of whose pairs were dropped, as by a capacity limit."""

    keep_N: Tensor

    def pairs(self) -> Pairs:
        pairs = super().pairs()
        return replace(pairs, expert_N=pairs.expert_N.where(self.keep_N, self.num_experts))


@pytest.mark.parametrize("dispatcher", [LOOP, GROUPED], ids=["loop", "grouped"])
@pytest.mark.parametrize("dropped", ["none", "some", "all of a token", "all"])
def test_only_dropped_pairs_are_missing_from_the_output(dispatcher: Dispatcher, dropped: str) -> None:
    T, E, K = 11, 4, 2
    routing = token_choice(any_experts(T, E, K), E)
    keep_TK = torch.ones(T, K, dtype=torch.bool)
    if dropped == "some":
        keep_TK[::2, 1] = False
    elif dropped == "all of a token":
        keep_TK[3] = False
    elif dropped == "all":
        keep_TK[:] = False
    some = Dropping(**vars(routing), keep_N=keep_TK.flatten())
    x_TD, bank = tokens(T, None), ffn_bank(E)
    y_TO = dispatcher(x_TD, some, bank).y_TO
    assert_same([y_TO], [one_by_one(x_TD, some, bank)])
    missing_T = ~keep_TK.any(1)
    assert not y_TO[missing_T].any() and bool(y_TO[~missing_T].any(1).all())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_grouped_equals_loop_for_any_shape(data: st.DataObject, seed: int) -> None:
    torch.manual_seed(seed)
    T, E = data.draw(st.integers(0, 9), "T"), data.draw(st.integers(1, 6), "E")
    width, out = data.draw(st.integers(1, 9), "D"), data.draw(st.integers(1, 9), "O")
    valid_T = torch.rand(T) < 0.7 if data.draw(st.booleans(), "padding") else None
    if data.draw(st.booleans(), "experts choose"):
        routing: Routing = expert_choice(any_tokens(T, E, data.draw(st.integers(0, T), "C")), T, valid_T)
    else:
        routing = token_choice(any_experts(T, E, data.draw(st.integers(1, E), "K")), E, valid_T)
    x_TD, bank = tokens(T, valid_T, width), ffn_bank(E, width, out)
    assert_same(run(GROUPED, x_TD, routing, bank), run(LOOP, x_TD, routing, bank))


# ---- fused ----------------------------------------------------------------------------------------------------------

FUSED_BANKS = [*((Glu, a) for a in ("silu", "gelu", "relu", "sigmoid")), *((Ffn, a) for a in ("relu", "gelu", "silu"))]


def assert_fused_equals_loop(x_TD: Tensor, routing: Routing, bank: ExpertBank, save: Any) -> None:
    fused = FusedDispatcher(Fused(save=save), LayerDims(dim=D, num_experts=bank.num_experts, out_dim=O))
    assert_same(run(fused, x_TD, routing, bank), run(LOOP, x_TD, routing, bank))


@pytest.mark.parametrize("save", ["all", "minimum", "nothing"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fused_equals_loop_on_token_choice(save: str, data: st.DataObject) -> None:
    T, E = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 6))
    K = data.draw(st.integers(1, E))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    expert_TK = any_experts(T, E, K)
    if data.draw(st.booleans(), label="all on the same experts"):
        expert_TK = torch.arange(K).expand(T, K)
    valid_T = torch.rand(T) > 0.3 if data.draw(st.booleans(), label="padding") else None
    routing = token_choice(expert_TK, E, valid_T)
    if data.draw(st.booleans(), label="unsent"):
        routing = replace(routing, sent_TK=torch.rand(T, K) > 0.3)
    spec, activation = data.draw(st.sampled_from(FUSED_BANKS))
    bank = build(spec(count=E, hidden=5, activation=activation), LayerDims(dim=D, num_experts=E, out_dim=O)).double()
    small_blocks = patch.multiple(blockwise, BLOCK=data.draw(st.sampled_from([1, 2, 5, 512]), label="rows"), NARROW=1)
    parallel_from = data.draw(st.sampled_from([0, 1 << 60]), label="parallel from")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with small_blocks, patch.object(thread_pool, "PARALLEL_FROM", parallel_from):
            assert_fused_equals_loop(tokens(T, valid_T), routing, bank, save)
    finally:
        torch.set_num_threads(threads)


def test_fused_equals_loop_on_expert_choice_and_tokens_that_are_not_contiguous() -> None:
    x_TD = torch.randn(2 * D, 9, dtype=F64)[::2].T.requires_grad_()
    assert not x_TD.is_contiguous()
    assert_fused_equals_loop(x_TD, expert_choice(any_tokens(9, 4, 3), 9), glu_bank(4), "minimum")


# ---- soft ---------------------------------------------------------------------------------------------------------


def soft_routing(T: int, E: int, P: int | None, valid_T: Tensor | None = None) -> Soft:
    combine_TEP = torch.rand(T, E, P or 1, dtype=F64)
    dispatch_TEP = None if P is None else torch.rand(T, E, P, dtype=F64)
    if valid_T is not None:
        combine_TEP[~valid_T] = torch.nan
        if dispatch_TEP is not None:
            dispatch_TEP[~valid_T] = torch.nan
    return Soft(
        **scores(T, E),
        valid_T=valid_T,
        combine_TEP=combine_TEP.requires_grad_(),
        dispatch_TEP=None if dispatch_TEP is None else dispatch_TEP.requires_grad_(),
    )


def logistic_bank(E: int) -> LinearExperts:
    return LinearExperts(Logistic(count=E), LayerDims(dim=D, num_experts=E, out_dim=O)).double()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("T, E, P", [(7, 3, None), (1, 1, None), (5, 4, None), (7, 3, 2), (6, 4, 1), (1, 1, 3)])
def test_soft_equals_naive(T: int, E: int, P: int | None, padded: bool) -> None:
    valid_T = padding(T) if padded else None
    routing, bank, x_TD = soft_routing(T, E, P, valid_T), logistic_bank(E), tokens(T, valid_T)
    real_T = torch.ones(T, dtype=torch.bool) if valid_T is None else valid_T
    x, combine = x_TD[real_T], routing.combine_TEP[real_T]

    def expert(e: int, x_D: Tensor) -> Tensor:
        assert bank.b_EO is not None
        return torch.sigmoid(bank.w_EOD[e] @ x_D + bank.b_EO[e])

    out = SOFT(x_TD, routing, bank)
    leaves = [x_TD, routing.combine_TEP, *bank.parameters()]
    if routing.dispatch_TEP is None:
        want, want_TEO = naive_blend(x, combine[:, :, 0], expert)
        assert out.expert_TEO is not None
        assert_same([out.expert_TEO[real_T]], [want_TEO])
    else:
        want = naive_slots(x, routing.dispatch_TEP[real_T], combine, expert)
        leaves.append(routing.dispatch_TEP)
        assert out.expert_TEO is None
    assert_same([out.y_TO[real_T]], [want])
    assert not out.y_TO[~real_T].any()
    g = torch.randn_like(want)
    g_TO = torch.ones(T, O, dtype=F64).index_put((real_T,), g)  # an upstream gradient of padding has no effect
    ours, theirs = torch.autograd.grad(out.y_TO, leaves, g_TO), torch.autograd.grad(want, leaves, g)
    assert_same(list(ours), list(theirs))


def test_soft_without_slots_differentiates_the_experts_own_outputs() -> None:
    routing, bank, x_TD = soft_routing(5, 3, None), logistic_bank(3), tokens(5, None)
    expert_TEO = SOFT(x_TD, routing, bank).expert_TEO
    assert expert_TEO is not None and expert_TEO.shape == (5, 3, O)
    (g_EOD,) = torch.autograd.grad(expert_TEO[:, 1].sum(), bank.w_EOD)
    assert bool(g_EOD[1].any()) and not g_EOD[[0, 2]].any()


@pytest.mark.parametrize("P", [None, 2])
def test_soft_with_no_tokens_gives_no_outputs(P: int | None) -> None:
    assert SOFT(tokens(0, None), soft_routing(0, 3, P), logistic_bank(3)).y_TO.shape == (0, O)
