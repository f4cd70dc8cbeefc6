"""Top-k routing on worked examples of papers. It equals its equations in tests/oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit.contracts import Init, LayerDims
from moekit.routing import TokenChoice
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

NAN, INF = float("nan"), float("inf")


def router_of(logits: list[float], **options: Any) -> TopKRouter:
    """A router that gives these logits (in fp64) to the token ``[1]``."""
    router = TopKRouter(TopK(**options), LayerDims(dim=1, num_experts=len(logits))).double()
    with torch.no_grad():
        router.weight_ED.copy_(torch.tensor(logits, dtype=torch.float64)[:, None])
    return router


def route(logits: list[float], *, selection: list[float] | None = None, **options: Any) -> TokenChoice:
    bias_E = None if selection is None else torch.tensor(selection, dtype=torch.float64)
    routing = router_of(logits, **options)(torch.ones(1, 1, dtype=torch.float64), selection_bias_E=bias_E)
    assert isinstance(routing, TokenChoice)
    return routing


def logits_of(*affinities: float) -> list[float]:
    return [math.log(s / (1 - s)) for s in affinities]


def by_expert(routing: TokenChoice) -> dict[int, float]:
    return dict(zip(routing.expert_TK[0].tolist(), routing.gate_TK[0].tolist(), strict=True))


def random_router(**options: Any) -> TopKRouter:
    router = TopKRouter(TopK(**options), LayerDims(dim=16, num_experts=8))
    router.init_weights(Init(std=1.0))
    return router


V2 = {"groups": 2, "top_groups": 1, "group_score": "max"}
V3 = {"score": "sigmoid", "groups": 2, "top_groups": 1, "group_score": "top2_sum", "renormalize": True, "scale": 2.5}


# --- scores and orders ------------------------------------------------------------------------------------------------


def test_softmax_then_renormalise_is_choose_then_softmax() -> None:
    z = [2.0, 1.0, 0.0]
    for options in ({"renormalize": True}, {"score_over": "chosen"}):
        assert by_expert(route(z, top_k=2, **options)) == pytest.approx({0: 0.731059, 1: 0.268941}, abs=5e-7)
    assert by_expert(route(z, top_k=2)) == pytest.approx({0: 0.665241, 1: 0.244728}, abs=5e-7)


def test_for_sigmoids_renormalising_matters_and_the_order_does_not() -> None:
    z = [2.0, 1.0, 0.0]
    plain = {0: 1 / (1 + math.exp(-2)), 1: 1 / (1 + math.exp(-1))}
    assert by_expert(route(z, top_k=2, score="sigmoid")) == pytest.approx(plain)
    assert by_expert(route(z, top_k=2, score="sigmoid", score_over="chosen")) == pytest.approx(plain)
    total = sum(plain.values())
    renormalised = by_expert(route(z, top_k=2, score="sigmoid", renormalize=True))
    assert renormalised == pytest.approx({e: s / total for e, s in plain.items()})
    assert renormalised != pytest.approx({0: 0.731059, 1: 0.268941}, abs=1e-3)  # what a softmax would give


# --- groups and selection bias ----------------------------------------------------------------------------------------


def test_groups_are_ranked_by_their_best_or_by_their_two_best() -> None:
    z = logits_of(0.9, 0.1, 0.5, 0.6)  # sums 1.0 and 1.1
    assert set(by_expert(route(z, top_k=2, score="sigmoid", **V2))) == {0, 1}
    assert set(by_expert(route(z, top_k=2, **V3))) == {2, 3}


def test_gates_are_those_of_deepseek_v3() -> None:
    z = logits_of(0.9, 0.1, 0.5, 0.6)
    assert by_expert(route(z, top_k=2, **V3)) == pytest.approx({2: 1.136364, 3: 1.363636}, abs=5e-7)
    biased = by_expert(route(z, top_k=2, selection=[0.3, 0, 0, 0], **V3))
    assert biased == pytest.approx({0: 2.25, 1: 0.25})


def test_masked_groups_are_not_chosen_even_if_every_key_is_negative() -> None:
    z = logits_of(0.3, 0.2, 0.25, 0.1)
    routing = route(z, top_k=2, selection=[-0.5] * 4, **V3)
    assert routing.expert_TK.tolist() == [[0, 1]]  # zeros in place of -inf would choose 2 and 3


def test_a_constant_added_to_the_bias_changes_nothing() -> None:
    router, x_TD = random_router(top_k=2, **V3).double(), torch.randn(100, 16, dtype=torch.float64)
    bias_E = torch.randn(8, dtype=torch.float64)
    a, b = router(x_TD, selection_bias_E=bias_E), router(x_TD, selection_bias_E=bias_E + 12)
    assert torch.equal(a.expert_TK, b.expert_TK)
    assert torch.equal(a.gate_TK, b.gate_TK)
    assert not torch.equal(a.expert_TK, router(x_TD).expert_TK)  # the bias has an effect


def test_gates_keep_a_tiny_affinity_under_a_large_bias() -> None:
    router = router_of([-18.0, -19.0, 0.0], top_k=2, score="sigmoid").float()
    gate_TK = router(torch.ones(1, 1), selection_bias_E=torch.tensor([12.0, 12.0, 0.0])).gate_TK
    torch.testing.assert_close(gate_TK, torch.tensor([[-18.0, -19.0]]).sigmoid())  # (s + b) - b would be 0


def test_a_bias_of_minus_infinity_bans_experts_until_none_is_left() -> None:
    bias = [-INF, 0.0, -INF, -INF]
    assert route([0, 0, 0, 0], top_k=2, selection=bias).expert_TK.tolist() == [[1, 0]]
    assert sorted(route([0, 0, 0, 0], top_k=4, selection=bias).expert_TK[0].tolist()) == [0, 1, 2, 3]
    by_max = route([0, 0, 0, 0], top_k=4, selection=[-INF] * 4, **V2 | {"top_groups": 2})
    assert by_max.expert_TK.tolist() == [[0, 1, 2, 3]]
    by_sum = route([0, 0, 0, 0], top_k=4, selection=[-INF] * 4, **V3 | {"top_groups": 2})
    assert by_sum.expert_TK.tolist() == [[0, 1, 2, 3]]


# --- gradients --------------------------------------------------------------------------------------------------------


def gate_gradient(gate: int, **options: Any) -> Tensor:
    """d gate / d logits of a token, through a logit bias of 0."""
    router = router_of([1.0, 0.5, 0.2, -0.3], bias=True, **options)
    assert router.bias_E is not None
    gates = router(torch.ones(1, 1, dtype=torch.float64)).gate_TK[0]
    return torch.autograd.grad(gates[gate], router.bias_E)[0]


def test_a_top1_gate_trains_the_router() -> None:
    s = torch.tensor([1.0, 0.5, 0.2, -0.3], dtype=torch.float64).softmax(-1)
    one = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(gate_gradient(0, top_k=1), s[0] * (one - s))
    assert gate_gradient(0, top_k=1, score="sigmoid", score_over="chosen")[0] > 0


def test_gates_of_sigmoids_do_not_depend_on_unselected_logits() -> None:
    for options in ({"score": "sigmoid", "renormalize": True}, {"score_over": "chosen"}):
        gradient = gate_gradient(1, top_k=2, **options)
        assert gradient[2:].tolist() == [0.0, 0.0]
        assert gradient[:2].abs().min() > 0


# --- precision --------------------------------------------------------------------------------------------------------


def test_logits_are_not_rounded_to_bf16_under_autocast() -> None:
    logits = torch.tensor([128.0] * 10 + [128.5])
    router = TopKRouter(TopK(top_k=1), LayerDims(dim=1, num_experts=11))
    with torch.no_grad():
        router.weight_ED.copy_(logits[:, None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(torch.ones(1, 1))
    assert routing.expert_TK.item() == 10
    assert routing.gate_TK.item() == pytest.approx(0.1415, abs=1e-4)
    assert logits.bfloat16().float().softmax(-1)[10].item() == pytest.approx(0.0909, abs=1e-4)  # if it were rounded


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "third"), [({}, 4), ({"score_over": "chosen"}, 4), ({"groups": 4, "top_groups": 2}, 0)]
)
def test_ties_go_to_the_lowest_index(options: dict[str, Any], third: int) -> None:
    assert route([0.0] * 8, top_k=3, **options).expert_TK.tolist() == [[0, 1, 2]]
    assert route([0, 1, 0, 1, 1, 0, 0, 0], top_k=3, **options).expert_TK.tolist() == [[1, 3, third]]


# --- jitter -----------------------------------------------------------------------------------------------------------


def test_jitter_is_for_training_and_does_not_change_the_input() -> None:
    router, x_TD = random_router(top_k=2, input_jitter=0.01), torch.randn(50, 16)
    before = x_TD.clone()
    noisy, again = router(x_TD), router(x_TD)
    assert torch.equal(x_TD, before)
    assert not torch.equal(noisy.logits_TE, again.logits_TE)
    clean = router.eval()(x_TD)
    assert torch.equal(clean.logits_TE, router(x_TD).logits_TE)
    assert torch.equal(clean.logits_TE, x_TD @ router.weight_ED.T)


def test_jitter_multiplies_by_a_uniform_factor_around_one() -> None:
    router = TopKRouter(TopK(top_k=1, input_jitter=0.25), LayerDims(dim=1, num_experts=1))
    with torch.no_grad():
        router.weight_ED.fill_(1.0)
    factor_T = router(torch.ones(4000, 1)).logits_TE[:, 0]
    assert 0.75 <= factor_T.min() < 0.76
    assert 1.24 < factor_T.max() <= 1.25
    assert factor_T.mean().item() == pytest.approx(1, abs=0.01)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_logit_bias_is_an_option() -> None:
    assert [name for name, _ in random_router(top_k=1).named_parameters()] == ["weight_ED"]
    assert [name for name, _ in random_router(top_k=1, bias=True).named_parameters()] == ["weight_ED", "bias_E"]
