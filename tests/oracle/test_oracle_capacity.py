"""Dispatchers that drop pairs equal loops over tokens in order, in fp64: outputs, drops and every gradient."""

from __future__ import annotations

import pytest
import torch
from agreement import assert_agree
from devices import on_a_card
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import token_choice
from torch import Tensor

from moekit.contracts import LayerDims
from moekit.routing import TokenChoice
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.capacity.module import CapacityDispatcher
from moekit_dispatchers.capacity.naive import naive_capacity, naive_slots
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.device_capacity.module import DeviceCapacityDispatcher
from moekit_dispatchers.device_capacity.naive import naive_keep
from moekit_dispatchers.grouped import Grouped
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts

D, O, H = 3, 4, 5  # noqa: E741
F64 = torch.float64
ORDERS = ("position", "choice", "priority", "affinity")


def any_routing(T: int, E: int, K: int, padded: bool, unsent: bool, ties: bool, crowd: bool) -> TokenChoice:
    """Random choices, if ``crowd`` mostly of the last expert. Everything that must have no effect is NaN."""
    scores_TE = torch.rand(T, E, dtype=F64)
    if crowd:
        scores_TE[:, E - 1] += 1
    if ties:
        scores_TE = (scores_TE * 3).round() / 3
    expert_TK = (scores_TE + 1e-6 * torch.rand(T, E, dtype=F64)).topk(K, dim=1).indices
    expert_TK = expert_TK.gather(1, torch.rand(T, K).argsort(1))  # a selection bias may change the order
    valid_T = torch.rand(T) < 0.7 if padded else None
    sent_TK = torch.rand(T, K) < 0.7 if unsent else None
    gate_TK = torch.rand(T, K, dtype=F64)
    if valid_T is not None:
        gate_TK[~valid_T], scores_TE[~valid_T] = torch.nan, torch.nan
    if sent_TK is not None:
        gate_TK[~sent_TK] = torch.nan
    return token_choice(scores_TE, expert_TK, valid_T, gate_TK=gate_TK.requires_grad_(), sent_TK=sent_TK)


def counted(routing: TokenChoice) -> Tensor:
    counts_TK = routing.counts_TK()
    return torch.ones_like(routing.expert_TK, dtype=torch.bool) if counts_TK is None else counts_TK


def tokens(routing: TokenChoice) -> Tensor:
    x_TD = torch.randn(routing.expert_TK.shape[0], D, dtype=F64)
    if routing.valid_T is not None:
        x_TD[~routing.valid_T] = torch.nan
    return x_TD.requires_grad_()


def bank_of(E: int) -> FfnExperts:
    dims = LayerDims(dim=D, num_experts=E, out_dim=O)
    return FfnExperts(Ffn(count=E, hidden=H, activation="gelu", bias=True), dims).double()


def one_by_one(
    routing: TokenChoice, counts_TK: Tensor, x_TD: Tensor, bank: FfnExperts, slots: int, size: int, order: str
) -> tuple[Tensor, int]:
    def expert(e: int, x_D: Tensor) -> Tensor:
        assert bank.b_up_EH is not None and bank.b_down_EO is not None
        hidden = torch.nn.functional.gelu(bank.w_up_EHD[e] @ x_D + bank.b_up_EH[e])
        return bank.w_down_EOH[e] @ hidden + bank.b_down_EO[e]

    E, clean_TD = bank.num_experts, x_TD if routing.valid_T is None else x_TD.where(routing.valid_T[:, None], 0)
    affinity_TK = routing.scores_TE.gather(1, routing.expert_TK)
    return naive_capacity(
        clean_TD, routing.expert_TK, routing.gate_TK, affinity_TK, counts_TK, slots, size, E, order, expert
    )


def assert_same(y_TO: Tensor, want_TO: Tensor, x_TD: Tensor, routing: TokenChoice, bank: FfnExperts) -> None:
    leaves = {"tokens": x_TD, "gates": routing.gate_TK, **dict(bank.named_parameters())}
    assert_agree(y_TO, want_TO, leaves, rtol=1e-12, atol=1e-13)


flags = st.booleans()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), order=st.sampled_from(ORDERS))
def test_capacity_equals_naive(data: st.DataObject, seed: int, order: str) -> None:
    torch.manual_seed(seed)
    B, groups, size = (data.draw(st.integers(1, top), name) for name, top in (("B", 3), ("groups", 2), ("size", 5)))
    E = data.draw(st.integers(1, 5), "E")
    K, T = data.draw(st.integers(1, E), "K"), B * groups * size
    per = data.draw(st.sampled_from(["batch", "sequence"]), "per")
    cut = data.draw(flags, "cut")
    in_group = size if cut else (T if per == "batch" else groups * size)
    factor, evaluate = data.draw(st.sampled_from([0.3, 0.5, 1.0, 1.25, 9.0]), "factor"), data.draw(flags, "eval")
    count, rounding = (
        data.draw(st.sampled_from(["pairs", "tokens"])),
        data.draw(st.sampled_from(["ceil", "floor", "round"])),
    )
    at_least, multiple = data.draw(st.integers(1, 3), "at_least"), data.draw(st.integers(1, 4), "multiple")
    spec = Capacity(
        factor=0.77 if evaluate else factor,
        eval_factor=factor if evaluate else 0.77,
        count=count,
        rounding=rounding,
        at_least=at_least,
        multiple=multiple,
        order=order,
        per=per,
        group_size=size if cut else None,
    )
    dispatcher = CapacityDispatcher(spec, LayerDims(dim=D, num_experts=E)).train(not evaluate)
    routing = any_routing(T, E, K, *(data.draw(flags, name) for name in ("padded", "unsent", "ties", "crowd")))
    x_TD, bank = tokens(routing), bank_of(E)
    out = dispatcher(x_TD, routing, bank, num_sequences=B)
    slots = naive_slots(in_group, K, E, str(factor), count, rounding, at_least, multiple)
    want_TO, dropped = one_by_one(routing, counted(routing), x_TD, bank, slots, in_group, order)
    assert out.dropped.shape == () and out.dropped.dtype == torch.int64 and int(out.dropped) == dropped
    assert_same(out.y_TO, want_TO, x_TD, routing, bank)


@on_a_card
@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("order", ORDERS)
def test_capacity_equals_naive_on_a_card(order: str, per: str, card: str) -> None:
    B, S, E, K = 3, 8, 5, 2
    spec = Capacity(factor=0.5, order=order, per=per)
    with torch.device(card):
        dispatcher = CapacityDispatcher(spec, LayerDims(dim=D, num_experts=E))
        routing = any_routing(B * S, E, K, True, True, True, True)
        x_TD, bank = tokens(routing), bank_of(E)
        out = dispatcher(x_TD, routing, bank, num_sequences=B)
        in_group = B * S if per == "batch" else S
        slots = naive_slots(in_group, K, E, "0.5", "pairs", "ceil", 1, 1)
        want_TO, dropped = one_by_one(routing, counted(routing), x_TD, bank, slots, in_group, order)
        assert int(out.dropped) == dropped > 0
        assert_same(out.y_TO, want_TO, x_TD, routing, bank)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(0, 300),
    choices=st.integers(1, 8),
    experts=st.integers(1, 64),
    hundredths=st.integers(1, 400),
    count=st.sampled_from(["pairs", "tokens"]),
    rounding=st.sampled_from(["ceil", "floor", "round"]),
    at_least=st.integers(1, 9),
    multiple=st.integers(1, 9),
)
def test_slots_equal_naive(
    tokens: int, choices: int, experts: int, hundredths: int, count: str, rounding: str, at_least: int, multiple: int
) -> None:
    """Exact for decimal factors, although 1.1 · 10 is not exact in binary."""
    factor = hundredths / 100
    spec = Capacity(factor=factor, count=count, rounding=rounding, at_least=at_least, multiple=multiple)
    found = CapacityDispatcher(spec, LayerDims(dim=1, num_experts=experts)).slots(tokens, choices, experts)
    assert found == naive_slots(tokens, choices, experts, str(factor), count, rounding, at_least, multiple)
    assert 0 <= found <= tokens


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("B", [0, 1, 2])
def test_capacity_with_no_tokens_drops_nothing(order: str, per: str, B: int) -> None:
    routing, bank = any_routing(0, 3, 2, False, False, False, False), bank_of(3)
    dispatcher = CapacityDispatcher(Capacity(order=order, per=per, group_size=4), LayerDims(dim=D, num_experts=3))
    out = dispatcher(tokens(routing), routing, bank, num_sequences=B)
    assert out.y_TO.shape == (0, O) and int(out.dropped) == 0


# ---- by device ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_device_capacity_equals_naive(data: st.DataObject, seed: int) -> None:
    torch.manual_seed(seed)
    B, S = data.draw(st.integers(1, 4), "B"), data.draw(st.integers(1, 4), "S")
    G, each = data.draw(st.integers(1, 3), "G"), data.draw(st.integers(1, 3), "experts of a device")
    E, T = G * each, B * S
    K = data.draw(st.integers(1, E), "K")
    factor, exempt = data.draw(st.sampled_from([0.3, 0.5, 1.0, 1.5]), "factor"), data.draw(st.sampled_from([0, 0.5, 1]))
    inner = Grouped() if data.draw(flags, "grouped inside") else Capacity(factor=0.8, order="choice")
    spec = DeviceCapacity(groups=G, factor=factor, exempt=exempt, inner=inner)
    dispatcher = DeviceCapacityDispatcher(spec, LayerDims(dim=D, num_experts=E))
    routing = any_routing(T, E, K, *(data.draw(flags, name) for name in ("padded", "unsent", "ties", "crowd")))
    x_TD, bank = tokens(routing), bank_of(E)

    torch.manual_seed(seed)
    exempt_T = (torch.rand(B) < exempt).repeat_interleave(S)
    torch.manual_seed(seed)
    out = dispatcher(x_TD, routing, bank, num_sequences=B)

    counts_TK, affinity_TK = counted(routing), routing.scores_TE.gather(1, routing.expert_TK)
    keep_TK = naive_keep(routing.expert_TK, affinity_TK, counts_TK, exempt_T, E, G, str(factor))
    slots = T if isinstance(inner, Grouped) else naive_slots(T, K, E, "0.8", "pairs", "ceil", 1, 1)
    want_TO, more = one_by_one(routing, keep_TK, x_TD, bank, slots, T, "choice")
    assert int(out.dropped) == int(counts_TK.sum() - keep_TK.sum()) + more
    assert_same(out.y_TO, want_TO, x_TD, routing, bank)
