"""Affinities that are all tiny: shares, gates, losses and gradients in fp32 still equal the equations in fp64.

Sigmoids of logits from -50 to -90 are between 1e-22 and 1e-39. A guard of 1e-20 next to their sum makes gates and
balance losses vanish (Megatron-LM, issue 1545).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moekit import build
from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.kinds import BalancerSpec
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.communication_balance import naive as communication
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.cv_squared import naive as cv
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.device_balance import naive as device
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance import naive as load_balance
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sequence_balance import naive as sequence
from moekit_routers.strict import Strict
from moekit_routers.strict import naive as strict
from moekit_routers.strict.module import StrictRouter
from moekit_routers.topk import TopK, naive
from moekit_routers.topk.module import TopKRouter

T, E, K, G = 6, 8, 3, 4
DTYPES = (torch.float32, torch.bfloat16)
RANGES = ((-90.0, -50.0), (-90.0, -80.0), (-51.0, -50.0))
CONTEXT = BalanceContext(num_sequences=1, training=True)


def logits(low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Random logits that ``dtype`` represents exactly, in fp64."""
    return (low + (high - low) * torch.rand(T, E, dtype=torch.float64)).to(dtype).double()


def routed(logits_TE: Tensor, dtype: torch.dtype, **options: Any) -> tuple[Tensor, TokenChoice]:
    """The router's weights, and its routing of T tokens that are each the row of an identity matrix."""
    router = TopKRouter(TopK(top_k=K, **options), LayerDims(dim=T, num_experts=E)).to(dtype)
    with torch.no_grad():
        router.weight_ED.copy_(logits_TE.T)
    routing = router(torch.eye(T, dtype=dtype))
    assert torch.equal(routing.logits_TE.double(), logits_TE) and routing.scores_TE.dtype == torch.float32
    return router.weight_ED, routing


def assert_equal(found: Tensor, weight_ED: Tensor, expected: Tensor, logits_TE: Tensor) -> None:
    """In value, and in the gradient of a random combination of the values."""
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=0)
    mix = torch.rand_like(expected) - 0.5
    (got_ED,) = torch.autograd.grad((found * mix.float()).sum(), weight_ED)
    (want_TE,) = torch.autograd.grad((expected * mix).sum(), logits_TE)
    assert want_TE.any()
    largest = want_TE.abs().max().item()
    rtol = 2e-5 if weight_ED.dtype == torch.float32 else 2**-8  # the weight's own gradient is rounded to bf16
    torch.testing.assert_close(got_ED.double(), want_TE.T, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize(
    "options", [{}, {"groups": G, "top_groups": 2, "group_score": "top2_sum"}], ids=["all", "groups"]
)
def test_renormalised_gates_equal_the_equation(
    dtype: torch.dtype, low: float, high: float, options: dict[str, Any]
) -> None:
    logits_TE = logits(low, high, dtype).requires_grad_()
    weight_ED, routing = routed(logits_TE.detach(), dtype, score="sigmoid", renormalize=True, scale=2.5, **options)
    expected = naive.route(
        torch.eye(T, dtype=torch.float64), logits_TE.T, top_k=K, kind="sigmoid", renormalize=True, scale=2.5, **options
    )
    assert routing.expert_TK.tolist() == expected.chosen
    torch.testing.assert_close(routing.gate_TK.sum(1), torch.full((T,), 2.5))
    assert_equal(routing.gate_TK, weight_ED, expected.gate_TK, logits_TE)


def test_gates_that_a_selection_bias_chose_are_renormalised_however_small_they_are() -> None:
    """A bias sends tokens to the experts with the smallest softmax values."""
    logits_TE = torch.tensor([[0.0, -80.0, -81.0, -90.0]], dtype=torch.float64).requires_grad_()
    router = TopKRouter(TopK(top_k=2, renormalize=True), LayerDims(dim=1, num_experts=4))
    with torch.no_grad():
        router.weight_ED.copy_(logits_TE.T)
    routing = router(torch.ones(1, 1), selection_bias_E=torch.tensor([-2.0, 0.0, 0.0, -1.0]))
    assert routing.expert_TK.tolist() == [[1, 2]]
    assert_equal(routing.gate_TK, router.weight_ED, logits_TE[:, 1:3].softmax(1), logits_TE)


LOSSES: list[tuple[BalancerSpec, Any]] = [
    (LoadBalance(), lambda s_TE, chosen: load_balance.loss(s_TE, chosen)),
    (LoadBalance(scope="sequence"), lambda s_TE, chosen: load_balance.loss(s_TE, chosen)),
    (SequenceBalance(), lambda s_TE, chosen: sequence.loss(s_TE, chosen)),
    (DeviceBalance(groups=G), lambda s_TE, chosen: device.loss(s_TE, chosen, G)),
    (
        CommunicationBalance(groups=G, top_groups=2),
        lambda s_TE, chosen: communication.loss(s_TE, chosen, G, 2),
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize(("spec", "oracle"), LOSSES, ids=lambda each: type(each).__name__)
def test_a_balance_loss_and_its_gradient_equal_the_equation(
    spec: BalancerSpec, oracle: Any, dtype: torch.dtype, low: float, high: float
) -> None:
    logits_TE = logits(low, high, dtype).requires_grad_()
    weight_ED, routing = routed(logits_TE.detach(), dtype, score="sigmoid")
    term = build(spec, LayerDims(dim=T, num_experts=E)).loss(routing, CONTEXT)
    expected = oracle(logits_TE.sigmoid(), routing.expert_TK.tolist())
    assert expected.item() > 0.1
    assert_equal(term.value, weight_ED, expected, logits_TE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", [-50.0, -80.0])
def test_cv_squared_of_tiny_gates_equals_the_equation(dtype: torch.dtype, logit: float) -> None:
    logits_TE = logits(logit - 3, logit, dtype).requires_grad_()
    weight_ED, routing = routed(logits_TE.detach(), dtype, score="sigmoid")
    term = build(CVSquared(), LayerDims(dim=T, num_experts=E)).loss(routing, CONTEXT)
    gate_TE = logits_TE.sigmoid()
    pairs = [(e, gate_TE[t, e]) for t, row in enumerate(routing.expert_TK.tolist()) for e in row]
    expected = cv.cv_squared(cv.importance(pairs, E, gate_TE.new_zeros(())))
    assert_equal(term.value, weight_ED, expected, logits_TE)


def test_strict_gates_of_tiny_softmax_values_equal_the_equation() -> None:
    """Both experts that keep the second token have softmax values below 1e-30 for it."""
    logits_TE = torch.tensor(
        [[9.0, 0.0, 0.0], [80.0, 1.0, 0.0], [81.0, -4.0, -4.0]], dtype=torch.float64
    ).requires_grad_()
    router = StrictRouter(Strict(top_k=1), LayerDims(dim=3, num_experts=3))
    with torch.no_grad():
        router.weight_ED.copy_(logits_TE.T)
        router.threshold_E.copy_(torch.tensor([1.0, 1e-40, 1e-40]))
    routing = router.eval()(torch.eye(3))
    expected = strict.route(
        torch.eye(3, dtype=torch.float64), logits_TE.T, router.threshold_E.double(), top_k=1, training=False
    )
    assert expected.kept == [[1, 2], [1, 2], [1, 2]]
    assert_equal(routing.gate_TK, router.weight_ED, expected.gate_TE, logits_TE)
