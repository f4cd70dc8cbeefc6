"""CV² of importance and load: worked numbers, balance, collapse, padding, unsent choices, which routers give a load."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from routings import loss_of, token_choice
from torch import Tensor

from moekit import MoELayer
from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import MoE, RouterSpec
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.cv_squared.module import CVSquaredLoss
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.topk import TopK

CONTEXT = BalanceContext(num_sequences=1, training=True)


def routing_of(chosen: list[list[int]], gates: list[list[float]], E: int) -> TokenChoice:
    return token_choice([[1 / E] * E] * len(chosen), chosen, gate_TK=torch.tensor(gates, dtype=torch.float64))


def cv_loss(routing: Routing, of: str = "importance") -> Tensor:
    assert CVSquared(of=of).weight == 0.1
    return loss_of(CVSquared(of=of), routing)


def test_the_variance_is_that_of_the_population() -> None:
    """(3, 1): 1 over 4, where the unbiased variance would give 0.5."""
    assert cv_loss(routing_of([[0]] * 3 + [[1]], [[1.0]] * 4, 2)).item() == pytest.approx(0.25, rel=1e-9)


def test_importance_sums_gates_not_tokens() -> None:
    """One gate of 3 weighs as three tokens of 1; both experts get two tokens here, and load is even."""
    routing = routing_of([[0, 1], [0, 1]], [[2.0, 0.5], [1.0, 0.5]], 2)
    assert cv_loss(routing).item() == pytest.approx(0.25, rel=1e-9)
    even = replace(routing, smooth_load_E=routing.load_E().double())
    assert cv_loss(even, "load").item() == 0


@pytest.mark.parametrize("E", [1, 2, 5])
def test_the_loss_is_zero_at_balance_and_e_minus_one_at_collapse(E: int) -> None:
    balanced = routing_of([[t % E] for t in range(3 * E)], [[0.7]] * (3 * E), E)
    assert cv_loss(balanced).item() == pytest.approx(0, abs=1e-12)
    collapsed = routing_of([[0]] * 4, [[0.7]] * 4, E)
    assert cv_loss(collapsed).item() == pytest.approx(E - 1, rel=1e-9)
    one_E = torch.zeros(E, dtype=torch.float64)
    one_E[0] = 9.0
    assert cv_loss(replace(collapsed, smooth_load_E=one_E), "load").item() == pytest.approx(E - 1, rel=1e-9)


def test_without_a_smooth_load_there_is_no_loss_of_load() -> None:
    balancer = CVSquaredLoss(CVSquared(of="load"), LayerDims(dim=1, num_experts=2))
    assert balancer.loss(routing_of([[0]], [[1.0]], 2), CONTEXT) is None


def test_importance_excludes_padding_and_choices_that_are_not_sent() -> None:
    nan = float("nan")
    gate_TK = torch.tensor([[0.6, 0.4], [nan, nan], [0.5, nan]], dtype=torch.float64, requires_grad=True)
    routing = replace(
        routing_of([[0, 1], [0, 2], [2, 1]], [[0.0, 0.0]] * 3, 3),
        gate_TK=gate_TK,
        valid_T=torch.tensor([True, False, True]),
        sent_TK=torch.tensor([[True, True], [True, True], [True, False]]),
    )
    value = cv_loss(routing)
    importance = torch.tensor([0.6, 0.4, 0.5])
    assert value.item() == pytest.approx((importance.var(correction=0) / importance.mean() ** 2).item(), rel=1e-5)
    (grad_TK,) = torch.autograd.grad(value, gate_TK)
    assert grad_TK.isfinite().all()
    assert grad_TK[1].tolist() == [0, 0] and grad_TK[2, 1] == 0 and grad_TK[0, 0] != 0


def test_importance_is_defined_for_every_form() -> None:
    """Two experts, importance 3 and 1, by expert choice and softly; the third token is padding."""
    shared = {
        "logits_TE": torch.zeros(3, 2, dtype=torch.float64),
        "scores_TE": torch.full((3, 2), 0.5, dtype=torch.float64),
        "valid_T": torch.tensor([True, True, False]),
    }
    gate_EC = torch.tensor([[1.0, 2.0], [1.0, 5.0]], dtype=torch.float64)
    by_expert = ExpertChoice(**shared, token_EC=torch.tensor([[0, 1], [0, 2]]), gate_EC=gate_EC)
    assert cv_loss(by_expert).item() == pytest.approx(0.25, rel=1e-9)
    combine_TEP = torch.tensor([[[1.0, 0.5], [0.25, 0.0]], [[1.0, 0.5], [0.5, 0.25]], [[9.0, 9.0], [0.0, 0.0]]])
    assert cv_loss(Soft(**shared, combine_TEP=combine_TEP.double())).item() == pytest.approx(0.25, rel=1e-9)


def test_micro_batches_are_less_balanced_than_the_batch() -> None:
    """As the docstring says: each half has all its gates on one expert; together they are even."""
    halves = [routing_of([[e]] * 3, [[1.0]] * 3, 2) for e in (0, 1)]
    whole = routing_of([[0]] * 3 + [[1]] * 3, [[1.0]] * 6, 2)
    assert [cv_loss(half).item() for half in halves] == pytest.approx([1, 1])
    assert cv_loss(whole).item() == 0


class Noisy(RouterSpec):
    """A router that gives a smooth load."""

    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    gives_smooth_load: ClassVar[bool] = True


def test_a_loss_of_load_requires_a_router_that_gives_one() -> None:
    balancers = {"load": CVSquared(of="load"), "importance": CVSquared()}
    message = (
        "balancer 'load': of=load needs a differentiable load, which TopK does not give (counts have no gradient): "
        "set of=importance, or use the router noisy_topk or hierarchical"
    )
    with pytest.raises(ConflictError, match=f"^{re.escape(message)}$"):
        MoE(router=TopK(top_k=2), experts=Glu(count=4, hidden=2), dispatcher=Grouped(), balancers=balancers)
    assert list(CVSquared(of="load").check_router(Noisy(), 4)) == []


def test_in_a_noisy_layer_both_losses_train_the_router_and_in_evaluation_only_importance_has_a_loss() -> None:
    """Shazeer et al.'s layer: importance and load, each with its weight."""
    balancers = {"importance": CVSquared(), "load": CVSquared(of="load", weight=0.2)}
    spec = MoE(
        router=NoisyTopK(top_k=2, zero_init=False),
        experts=Glu(count=5, hidden=2),
        dispatcher=Grouped(),
        balancers=balancers,
    )
    layer = MoELayer.from_spec(spec, 4)
    x = torch.randn(3, 6, 4)
    _, report = layer(x)
    assert {name: term.weight for name, term in report.losses.items()} == {"importance": 0.1, "load": 0.2}
    weights = list(layer.router.parameters())
    for name, term in report.losses.items():
        grads = torch.autograd.grad(term.value, weights, retain_graph=True, allow_unused=True)
        assert grads[0] is not None and grads[0].isfinite().all() and grads[0].any(), name
    _, report = layer.eval()(x)
    assert list(report.losses) == ["importance"]
