"""Properties of SparseMixer: its two masked choices, its sampling, its gradient. It equals its equations in oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moekit.contracts import LayerDims
from moekit_routers.sparse_mixer import SparseMixer
from moekit_routers.sparse_mixer.module import SparseMixerRouter


def router_of(logits: list[float], **options: float) -> SparseMixerRouter:
    """A router that gives the token [1] these logits."""
    router = SparseMixerRouter(SparseMixer(**options), LayerDims(dim=1, num_experts=len(logits))).double()
    with torch.no_grad():
        router.weight_ED.copy_(torch.tensor(logits)[:, None])
    return router


def token(T: int = 1) -> Tensor:
    return torch.ones(T, 1, dtype=torch.float64)


def test_the_worked_example() -> None:
    """2r = .2: 1.9 is close to 2 (by .05 of 2), 1 is not; without 2, only 1.9 is left to itself."""
    out = router_of([1.0, 2.0, 1.9], jitter=0.1).eval()(token())
    assert out.expert_TK.tolist() == [[1, 2]]
    first = 1 / (1 + torch.exp(torch.tensor(-0.1, dtype=torch.float64)))
    torch.testing.assert_close(out.gate_TK, torch.tensor([[first, 1.0]], dtype=torch.float64), rtol=1e-6, atol=0)


def test_without_jitter_every_gate_is_one_and_nothing_is_sampled() -> None:
    out = router_of([0.3, -0.2, 0.5, 0.1], jitter=0.0)(token(50))
    assert (out.gate_TK == 1).all() and out.expert_TK.tolist() == [[2, 0]] * 50


def test_in_training_experts_are_sampled_from_the_softmax_over_close_ones() -> None:
    torch.manual_seed(0)
    T = 20_000
    out = router_of([1.0, 0.5, 0.0], top_k=1, jitter=10.0)(token(T))
    share_E = torch.bincount(out.expert_TK[:, 0], minlength=3) / T
    torch.testing.assert_close(share_E.double(), torch.tensor([1.0, 0.5, 0.0]).double().softmax(-1), rtol=0, atol=0.012)


def test_a_sampled_gate_is_a_third_three_times_of_four_and_the_best_one_is_never_less() -> None:
    torch.manual_seed(0)
    prob_E = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64).softmax(-1)
    out = router_of([1.0, 0.5, 0.0], top_k=1, jitter=10.0)(token(20_000))
    gate_T, prob_T = out.gate_TK[:, 0], prob_E[out.expert_TK[:, 0]]
    best_T, whole_T = out.expert_TK[:, 0] == 0, torch.isclose(gate_T, prob_T)
    assert whole_T[best_T].all()
    torch.testing.assert_close(gate_T[~whole_T], prob_T[~whole_T] / 3)
    assert whole_T[~best_T].double().mean().item() == pytest.approx(0.25, abs=0.015)


def test_the_gradient_of_a_gate_is_that_of_the_softmax_also_where_it_is_a_third() -> None:
    torch.manual_seed(0)
    router = router_of([1.0, 0.5, 0.0], top_k=1, jitter=10.0)
    out = router(token(64))
    prob_E = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64).softmax(-1)
    expected_E = torch.zeros(3, dtype=torch.float64)
    for e in out.expert_TK[:, 0].tolist():
        expected_E += prob_E[e] * (torch.eye(3, dtype=torch.float64)[e] - prob_E)
    out.gate_TK.sum().backward()
    assert router.weight_ED.grad is not None and (out.gate_TK[:, 0] < prob_E.min()).any()
    torch.testing.assert_close(router.weight_ED.grad[:, 0], expected_E)
