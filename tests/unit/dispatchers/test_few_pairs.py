"""Few pairs without a gradient take another path through the grouped dispatcher, with the same result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import token_choice
from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims
from moekit.moe_layer import MoELayer
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit.spec.kinds import MoE
from moekit_dispatchers.grouped import Grouped, module
from moekit_dispatchers.grouped.module import MOST_FEW, GroupedDispatcher, ListedGroups, dispatch_few
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_routers.topk import TopK

D, OUT, F64 = 7, 5, torch.float64
DIMS = LayerDims(dim=D, num_experts=1)
GROUPED, LOOP = GroupedDispatcher(Grouped(), DIMS), LoopDispatcher(Loop(), DIMS)


def bank_of(kind: str, E: int) -> ExpertBank:
    dims = LayerDims(dim=D, num_experts=E, out_dim=OUT)
    if kind == "modules":
        return ExpertBank.from_modules([torch.nn.Linear(D, OUT) for _ in range(E)], OUT).double()
    if kind == "ffn":
        return FfnExperts(Ffn(count=E, hidden=6, activation="gelu", bias=True), dims).double()
    return GluExperts(Glu(count=E, hidden=6, scale_bias=kind == "scaled"), dims).double()


def chosen(T: int, E: int, K: int, *, padded: bool, unsent: bool) -> TokenChoice:
    scores_TE = torch.rand(T, E, dtype=F64)
    valid_T = torch.rand(T) < 0.6 if padded else None
    sent_TK = torch.rand(T, K) < 0.6 if unsent else None
    gate_TK = torch.rand(T, K, dtype=F64)
    return token_choice(scores_TE, scores_TE.topk(K).indices, valid_T, gate_TK=gate_TK, sent_TK=sent_TK)


def tokens(routing: Routing) -> Tensor:
    x_TD = torch.randn(len(routing.scores_TE), D, dtype=F64)
    if routing.valid_T is not None:
        x_TD[~routing.valid_T] = torch.nan
    return x_TD


@pytest.fixture
def few_calls() -> Iterator[list[int]]:
    """The number of pairs of each call on the path for few."""
    found: list[int] = []
    real = module.dispatch_few

    def seen(x_TD: Tensor, pairs, experts: ExpertBank):  # type: ignore[no-untyped-def]
        found.append(len(pairs.expert_N))
        return real(x_TD, pairs, experts)

    with patch.object(module, "dispatch_few", seen):
        yield found


@pytest.mark.parametrize("kind", ["glu", "scaled", "ffn", "modules"])
@settings(max_examples=25, deadline=None)
@given(T=st.integers(0, 9), E=st.integers(1, 7), data=st.data(), padded=st.booleans(), unsent=st.booleans())
def test_few_pairs_equal_the_loop(kind: str, T: int, E: int, data: st.DataObject, padded: bool, unsent: bool) -> None:
    routing: TokenChoice | ExpertChoice = chosen(T, E, data.draw(st.integers(1, E)), padded=padded, unsent=unsent)
    if data.draw(st.booleans(), "experts choose") and T:
        C = data.draw(st.integers(0, T))
        routing = ExpertChoice(
            logits_TE=routing.logits_TE,
            scores_TE=routing.scores_TE,
            valid_T=routing.valid_T,
            token_EC=torch.rand(E, T).topk(C).indices,
            gate_EC=torch.rand(E, C, dtype=F64),
        )
    x_TD, bank = tokens(routing), bank_of(kind, E)
    with torch.no_grad():
        found, expected = dispatch_few(x_TD, routing.pairs(), bank), LOOP(x_TD, routing, bank)
    torch.testing.assert_close(found.y_TO, expected.y_TO, rtol=1e-12, atol=1e-13)
    assert int(found.dropped) == 0 and found.dropped.dtype == torch.int64
    if routing.valid_T is not None:
        assert not found.y_TO[~routing.valid_T].any()


def test_the_path_is_for_few_pairs_without_a_gradient(few_calls: list[int]) -> None:
    for E, most in ((4, 1), (8, 2), (2 * MOST_FEW, MOST_FEW // 2), (3 * MOST_FEW, MOST_FEW // 2)):
        bank = bank_of("glu", E)
        enough, many = (chosen(T, E, 2, padded=False, unsent=False) for T in (most, most + 1))
        GROUPED(tokens(enough), enough, bank)
        with torch.no_grad():
            GROUPED(tokens(many), many, bank)
            assert few_calls == []
            GROUPED(tokens(enough), enough, bank)
            assert few_calls == [2 * most]
            torch.compile(GROUPED, backend="eager", fullgraph=False)(tokens(enough), enough, bank)
        assert few_calls == [2 * most]
        few_calls.clear()


def test_both_paths_agree_up_to_rounding(few_calls: list[int]) -> None:
    layer = MoELayer.from_spec(
        MoE(router=TopK(top_k=3), experts=Glu(count=32, hidden=6), shared=Glu(hidden=6), dispatcher=Grouped()), D
    )
    x = torch.randn(1, 5, D)
    many = layer(x)[0]
    with torch.inference_mode():
        torch.testing.assert_close(layer(x)[0], many, rtol=1e-5, atol=1e-6)
    assert few_calls == [15]


@pytest.mark.parametrize("gate", [torch.float32, torch.bfloat16])
def test_dtypes_are_those_of_the_grouped_path(gate: torch.dtype, few_calls: list[int]) -> None:
    bank = bank_of("ffn", 12).bfloat16()
    routing = chosen(3, 12, 2, padded=False, unsent=False)
    routing = replace(routing, gate_TK=routing.gate_TK.to(gate))
    x_TD = tokens(routing).bfloat16()
    many = GROUPED(x_TD, routing, bank).y_TO
    with torch.no_grad():
        found = GROUPED(x_TD, routing, bank).y_TO
        with torch.autocast("cpu", torch.bfloat16):
            cast = GROUPED(x_TD.float(), routing, bank_of("ffn", 12).float()).y_TO
    assert few_calls == [6, 6]
    assert found.dtype == many.dtype == cast.dtype == torch.bfloat16
    torch.testing.assert_close(found, many, rtol=0.02, atol=0.02)


def test_listed_groups_skip_idle_experts() -> None:
    groups = ListedGroups([1, 1, 4], 6)
    w_EHD, b_EH, x_ND = torch.randn(6, 3, 2), torch.randn(6, 3), torch.randn(3, 2)
    w_EHD[[0, 2, 3, 5]] = torch.nan
    expected = torch.stack([w_EHD[e] @ x + b_EH[e] for e, x in zip([1, 1, 4], x_ND, strict=True)])
    torch.testing.assert_close(groups.linear(x_ND, w_EHD, b_EH), expected)
    assert torch.equal(groups.per_row(b_EH), b_EH[[1, 1, 4]])
    assert [len(part) for part in groups.split(x_ND)] == [0, 2, 0, 0, 1, 0]
    empty = ListedGroups([], 6)
    assert empty.linear(x_ND[:0], w_EHD, b_EH).shape == (0, 3) and empty.per_row(b_EH).shape == (0, 3)
    assert [part.shape for part in empty.split(x_ND[:0])] == [(0, 2)] * 6
