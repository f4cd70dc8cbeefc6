"""Choices that top-k routing sends at random: GShard 2020, algorithm 1; ST-MoE 2022, appendix G."""

from __future__ import annotations

import math

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.routing import TokenChoice
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

TOKENS = 4000


def route(gates: list[float], spec: TopK, *, training: bool = True) -> TokenChoice:
    """Many tokens with these affinities."""
    router = TopKRouter(spec, LayerDims(dim=1, num_experts=len(gates))).train(training)
    with torch.no_grad():
        router.weight_ED.copy_(torch.tensor([[math.log(g)] for g in gates]))
    torch.manual_seed(0)
    routing: TokenChoice = router(torch.ones(TOKENS, 1))
    return routing


def shares(routing: TokenChoice) -> list[float]:
    assert routing.sent_TK is not None
    return routing.sent_TK.float().mean(0).tolist()


@pytest.mark.parametrize(
    ("g2", "threshold", "probability"), [(0.5, 0.5, 1), (0.1, 0.5, 0.2), (0.1, 0.2, 0.5), (0.25, 0.2, 1)]
)
def test_a_second_choice_is_sent_in_proportion_to_its_gate(g2: float, threshold: float, probability: float) -> None:
    first, second = shares(route([1 - g2, g2], TopK(top_k=2, renormalize=True, send_threshold=threshold)))
    assert first == 1
    assert second == pytest.approx(probability, abs=0.03 if probability < 1 else 0)


def test_every_choice_after_the_first_is_sent_independently() -> None:
    routing = route([0.6, 0.25, 0.15], TopK(top_k=3, send_threshold=0.5))
    assert shares(routing) == pytest.approx([1, 0.5, 0.3], abs=0.03)
    assert routing.sent_TK is not None
    both = (routing.sent_TK[:, 1] & routing.sent_TK[:, 2]).float().mean().item()
    assert both == pytest.approx(0.5 * 0.3, abs=0.03)


def test_the_first_choice_is_sent_however_small_its_gate() -> None:
    assert shares(route([0.1] * 10, TopK(top_k=2, send_threshold=1.0))) == pytest.approx([1, 0.1], abs=0.02)


def test_the_threshold_applies_after_renormalising_and_before_scaling() -> None:
    plain = route([0.3, 0.1, 0.6], TopK(top_k=2, send_threshold=0.5))
    assert shares(plain)[1] == pytest.approx(0.3 / 0.5, abs=0.03)
    renormalised = route([0.3, 0.1, 0.6], TopK(top_k=2, renormalize=True, send_threshold=0.5))
    assert shares(renormalised)[1] == pytest.approx((0.3 / 0.9) / 0.5, abs=0.03)
    scaled = route([0.3, 0.1, 0.6], TopK(top_k=2, send_threshold=0.5, scale=16.0))
    assert shares(scaled) == shares(plain)


def test_gates_of_sent_choices_are_not_rescaled() -> None:
    routing = route([0.8, 0.2], TopK(top_k=2, renormalize=True, send_threshold=0.5))
    torch.testing.assert_close(routing.gate_TK, torch.tensor([[0.8, 0.2]]).expand(TOKENS, 2))


def test_a_choice_that_is_not_sent_counts_as_neither_load_nor_pair() -> None:
    routing = route([0.8, 0.2], TopK(top_k=2, renormalize=True, send_threshold=0.5))
    assert routing.sent_TK is not None
    num_sent = int(routing.sent_TK[:, 1].sum())
    assert 0 < num_sent < TOKENS
    assert routing.load_E().tolist() == [TOKENS, num_sent]
    assert int((routing.pairs().expert_N == 2).sum()) == TOKENS - num_sent


def test_everything_is_sent_in_evaluation_and_without_a_threshold() -> None:
    assert route([0.9, 0.1], TopK(top_k=2, send_threshold=0.5), training=False).sent_TK is None
    assert route([0.9, 0.1], TopK(top_k=2)).sent_TK is None
