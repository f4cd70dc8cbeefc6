"""Balancers against their loops, in fp64: value and gradient, over shapes, padding, sequences and ties."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import TokenChoice
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance import naive as load_naive
from moekit_balancers.load_balance.module import LoadBalanceLoss
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sequence_balance import naive as sequence_naive
from moekit_balancers.sequence_balance.module import SequenceBalanceLoss
from moekit_balancers.sign_bias import SignBias
from moekit_balancers.sign_bias import naive as sign_naive
from moekit_balancers.sign_bias.module import SignBiasBalancer


@dataclass
class Case:
    routing: TokenChoice
    chosen: list[list[int]]
    valid: list[bool] | None
    num_sequences: int

    @property
    def context(self) -> BalanceContext:
        return BalanceContext(num_sequences=self.num_sequences, training=True)

    @property
    def dims(self) -> LayerDims:
        return LayerDims(dim=1, num_experts=self.routing.num_experts)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Affinities on a grid of eighths, so that ties are common; any choice of distinct experts."""
    E, B, S = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(0, 4))
    K, T = draw(st.integers(1, E)), B * S
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scores_TE = (torch.randint(1, 9, (T, E), generator=generator).double() / 8).requires_grad_()
    expert_TK = torch.rand(T, E, generator=generator).argsort(-1)[:, :K]
    valid_T = torch.rand(T, generator=generator) < 0.6 if draw(st.booleans()) else None
    routing = TokenChoice(
        logits_TE=scores_TE.detach().logit(eps=1e-6),
        scores_TE=scores_TE,
        valid_T=valid_T,
        expert_TK=expert_TK,
        gate_TK=scores_TE.gather(1, expert_TK),
    )
    return Case(routing, expert_TK.tolist(), None if valid_T is None else valid_T.tolist(), B)


def agree(got: Tensor, want: Tensor, scores_TE: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    if scores_TE.numel():
        (a,) = torch.autograd.grad(got, scores_TE, allow_unused=True, materialize_grads=True)
        if want.requires_grad:
            (b,) = torch.autograd.grad(want, scores_TE, allow_unused=True, materialize_grads=True)
        else:
            b = torch.zeros_like(scores_TE)
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), normalize=st.booleans())
def test_load_balance_is_its_equation(scope: str, case: Case, normalize: bool) -> None:
    balancer = LoadBalanceLoss(LoadBalance(weight=0.5, scope=scope, normalize=normalize), case.dims)
    term = balancer.loss(case.routing, case.context)
    want = load_naive.loss(
        case.routing.scores_TE,
        case.chosen,
        valid=case.valid,
        num_sequences=case.num_sequences if scope == "sequence" else 1,
        normalize=normalize,
    )
    assert term.weight == 0.5
    agree(term.value, want, case.routing.scores_TE)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), data=st.data())
def test_load_balance_of_the_last_step_is_its_equation(case: Case, data: st.DataObject) -> None:
    E, K = case.routing.num_experts, case.routing.expert_TK.shape[1]
    load = data.draw(st.lists(st.sampled_from([0, 1, 3, 12]), min_size=E, max_size=E))
    balancer = LoadBalanceLoss(LoadBalance(scope="step"), case.dims)
    balancer.step(torch.tensor(load))
    # f as the buffer keeps it, in fp32: the loop is given the same numbers
    shares = torch.tensor(load) / sum(load) if sum(load) else torch.full((E,), 1 / E)
    fraction = [K * share for share in shares.double().tolist()]
    want = load_naive.loss(case.routing.scores_TE, case.chosen, valid=case.valid, fraction=fraction)
    agree(balancer.loss(case.routing, case.context).value, want, case.routing.scores_TE)


@pytest.mark.parametrize("count", ["routed", "affinity"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases())
def test_sequence_balance_is_its_equations(count: str, case: Case) -> None:
    term = SequenceBalanceLoss(SequenceBalance(count=count), case.dims).loss(case.routing, case.context)
    want = sequence_naive.loss(
        case.routing.scores_TE, case.chosen, valid=case.valid, num_sequences=case.num_sequences, count=count
    )
    agree(term.value, want, case.routing.scores_TE)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), max_size=6))
def test_sign_bias_is_its_rule(loads: list[list[int]]) -> None:
    balancer = SignBiasBalancer(SignBias(rate=0.25), LayerDims(dim=1, num_experts=4))  # a power of two: sums are exact
    bias = [0.0] * 4
    for load in loads:
        balancer.step(torch.tensor(load))
        bias = sign_naive.step(bias, load, 0.25)
    assert balancer.selection_bias().tolist() == bias


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), max_size=6))
def test_the_proportional_bias_is_its_rule(loads: list[list[int]]) -> None:
    balancer = SignBiasBalancer(SignBias(rate=0.25, rule="proportional"), LayerDims(dim=1, num_experts=4))
    bias = [0.0] * 4
    for load in loads:
        balancer.step(torch.tensor(load))
        bias = sign_naive.step_proportional(bias, load, 0.25)
    assert balancer.selection_bias().tolist() == pytest.approx(bias, rel=1e-5, abs=1e-6)
