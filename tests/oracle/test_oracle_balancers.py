"""Balancers against their loops, in fp64: losses and their gradients, with padding and unsent choices; bias updates.

Gradients are with respect to logits, as in a router. Logits are flat, usual, extreme, and often tied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import token_choice
from torch import Tensor

from moekit.contracts import BalanceContext, Balancer, LayerDims
from moekit.router_math import first_top_k
from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.communication_balance import naive as communication_naive
from moekit_balancers.communication_balance.module import CommunicationBalanceLoss
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.cv_squared import naive as cv_naive
from moekit_balancers.cv_squared.module import CVSquaredLoss
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.device_balance import naive as device_naive
from moekit_balancers.device_balance.module import DeviceBalanceLoss
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance import naive as load_naive
from moekit_balancers.load_balance.module import LoadBalanceLoss
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sequence_balance import naive as sequence_naive
from moekit_balancers.sequence_balance.module import SequenceBalanceLoss
from moekit_balancers.sign_bias import SignBias
from moekit_balancers.sign_bias import naive as sign_naive
from moekit_balancers.sign_bias.module import SignBiasBalancer
from moekit_balancers.z_loss import ZLoss
from moekit_balancers.z_loss import naive as z_naive
from moekit_balancers.z_loss.module import RouterZLoss


@dataclass
class Case:
    logits_TE: Tensor
    scores_TE: Tensor
    routing: TokenChoice
    num_sequences: int
    groups: int

    @property
    def context(self) -> BalanceContext:
        return BalanceContext(num_sequences=self.num_sequences, training=True)

    @property
    def dims(self) -> LayerDims:
        return LayerDims(dim=1, num_experts=self.routing.num_experts)

    @property
    def valid(self) -> list[bool] | None:
        return None if self.routing.valid_T is None else self.routing.valid_T.tolist()

    def sent(self, first: bool = False) -> list[list[int]]:
        """The experts that each token is sent to; with ``first``, of its first choice only."""
        sent_TK = self.routing.sent_TK
        rows = self.routing.expert_TK.tolist()
        flags = [[True] * len(row) for row in rows] if sent_TK is None else sent_TK.tolist()
        chosen = [[e for e, s in zip(row, flag, strict=True) if s] for row, flag in zip(rows, flags, strict=True)]
        firsts = [row[:1] if flag[0] else [] for row, flag in zip(rows, flags, strict=True)]
        return firsts if first else chosen


@st.composite
def cases(draw: st.DrawFn, sigmoid: bool = True) -> Case:
    G, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    B, S = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    E, T = G * size, B * S
    K = draw(st.integers(1, E))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    by_sigmoid = sigmoid and draw(st.booleans())
    scale = draw(st.sampled_from([0.0, 1.0, 100.0]))
    grid_TE = torch.randint(-4, 5, (T, E), generator=generator).double() / 4  # ties are common
    logits_TE = (scale * grid_TE).requires_grad_()
    scores_TE = logits_TE.sigmoid() if by_sigmoid else logits_TE.softmax(-1)
    expert_TK = (
        first_top_k(scores_TE, K) if draw(st.booleans()) else torch.rand(T, E, generator=generator).argsort(-1)[:, :K]
    )
    valid_T = torch.rand(T, generator=generator) < 0.6 if draw(st.booleans()) else None
    sent_TK = torch.rand(T, K, generator=generator) < 0.7 if draw(st.booleans()) else None
    routing = token_choice(scores_TE, expert_TK, valid_T, logits_TE=logits_TE, sent_TK=sent_TK, sigmoid=by_sigmoid)
    return Case(logits_TE, scores_TE, routing, B, G)


def value_of(balancer: Balancer, case: Case, routing: Routing | None = None) -> Tensor:
    term = balancer.loss(routing or case.routing, case.context)
    assert term is not None
    return term.value


def agree(got: Tensor, want: Tensor, logits_TE: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    grads = [
        torch.autograd.grad(v, logits_TE, allow_unused=True, materialize_grads=True, retain_graph=True)[0]
        if v.requires_grad
        else torch.zeros_like(logits_TE)
        for v in (got, want)
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


fifty = settings(max_examples=50, deadline=None, derandomize=True)
hundred = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.mark.parametrize("count", ["all", "first"])
@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
@hundred
@given(case=cases(), normalize=st.booleans())
def test_load_balance_is_its_equation(scope: str, count: str, case: Case, normalize: bool) -> None:
    """f counts all choices that are sent, or the first."""
    spec = LoadBalance(weight=0.5, scope=scope, count=count, normalize=normalize)
    term = LoadBalanceLoss(spec, case.dims).loss(case.routing, case.context)
    B = case.num_sequences if scope == "sequence" else 1
    chosen = case.sent(first=count == "first")
    want = load_naive.loss(case.scores_TE, chosen, valid=case.valid, num_sequences=B, normalize=normalize)
    assert term.weight == 0.5
    agree(term.value, want, case.logits_TE)


@hundred
@given(case=cases(), data=st.data())
def test_load_balance_of_the_last_step_is_its_equation(case: Case, data: st.DataObject) -> None:
    E, K = case.routing.num_experts, case.routing.expert_TK.shape[1]
    load = data.draw(st.lists(st.sampled_from([0, 1, 3, 12]), min_size=E, max_size=E))
    balancer = LoadBalanceLoss(LoadBalance(scope="step"), case.dims)
    balancer.step(torch.tensor(load))
    # f as in the buffer, in fp32: the loop gets the same numbers
    shares = torch.tensor(load) / sum(load) if sum(load) else torch.full((E,), 1 / E)
    fraction = [K * share for share in shares.double().tolist()]
    want = load_naive.loss(case.scores_TE, case.routing.expert_TK.tolist(), valid=case.valid, fraction=fraction)
    agree(value_of(balancer, case), want, case.logits_TE)


@pytest.mark.parametrize("count", ["routed", "affinity"])
@hundred
@given(case=cases())
def test_sequence_balance_is_its_equations(count: str, case: Case) -> None:
    """f counts the choices that are sent, or the K experts of the highest affinity."""
    got = value_of(SequenceBalanceLoss(SequenceBalance(count=count), case.dims), case)
    chosen = case.sent() if count == "routed" else case.routing.expert_TK.tolist()
    want = sequence_naive.loss(case.scores_TE, chosen, valid=case.valid, num_sequences=case.num_sequences, count=count)
    agree(got, want, case.logits_TE)


@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
@fifty
@given(case=cases())
def test_device_balance_is_its_equations(scope: str, case: Case) -> None:
    got = value_of(DeviceBalanceLoss(DeviceBalance(groups=case.groups, scope=scope), case.dims), case)
    B = case.num_sequences if scope == "sequence" else 1
    want = device_naive.loss(case.scores_TE, case.sent(), case.groups, valid=case.valid, num_sequences=B)
    agree(got, want, case.logits_TE)


@fifty
@given(case=cases(), data=st.data())
def test_communication_balance_is_its_equations(case: Case, data: st.DataObject) -> None:
    M = data.draw(st.integers(1, case.groups))
    got = value_of(CommunicationBalanceLoss(CommunicationBalance(groups=case.groups, top_groups=M), case.dims), case)
    want = communication_naive.loss(
        case.scores_TE, case.sent(), case.groups, M, valid=case.valid, num_sequences=case.num_sequences
    )
    agree(got, want, case.logits_TE)


@fifty
@given(case=cases())
def test_z_loss_is_its_equation(case: Case) -> None:
    agree(
        value_of(RouterZLoss(ZLoss(), case.dims), case), z_naive.loss(case.logits_TE, valid=case.valid), case.logits_TE
    )


@fifty
@given(case=cases())
def test_the_gradient_of_z_loss_is_its_formula(case: Case) -> None:
    """dL/dz_tj = (2/T) · lse_t · softmax(z_t)_j on the T valid tokens, 0 on padding."""
    value = value_of(RouterZLoss(ZLoss(), case.dims), case)
    (grad_TE,) = torch.autograd.grad(value, case.logits_TE)
    z_TE, valid_T = case.logits_TE.detach(), case.routing.valid_T
    valid_T = torch.ones(len(z_TE), dtype=torch.bool) if valid_T is None else valid_T
    want_TE = 2 / max(int(valid_T.sum()), 1) * z_TE.logsumexp(-1, keepdim=True) * z_TE.softmax(-1) * valid_T[:, None]
    torch.testing.assert_close(grad_TE, want_TE, rtol=1e-11, atol=1e-14)


@fifty
@given(case=cases())
def test_cv_squared_of_importance_is_its_equation(case: Case) -> None:
    E, gate_TK, counts_TK = case.routing.num_experts, case.routing.gate_TK, case.routing.counts_TK()
    pairs = [
        (e, gate_TK[t, k])
        for t, row in enumerate(case.routing.expert_TK.tolist())
        for k, e in enumerate(row)
        if counts_TK is None or counts_TK[t, k]
    ]
    want = cv_naive.cv_squared(cv_naive.importance(pairs, E, case.logits_TE.new_zeros(())))
    agree(value_of(CVSquaredLoss(CVSquared(), case.dims), case), want, case.logits_TE)


@fifty
@given(case=cases(), form=st.sampled_from(["expert_choice", "soft"]))
def test_cv_squared_of_importance_for_expert_choice_and_soft_routing(case: Case, form: str) -> None:
    scores_TE, valid_T = case.scores_TE, case.routing.valid_T
    T, E = scores_TE.shape
    counts = [valid_T is None or bool(valid_T[t]) for t in range(T)]
    shared = {"logits_TE": case.logits_TE, "scores_TE": scores_TE, "valid_T": valid_T}
    routing: Routing
    if form == "expert_choice":
        token_EC = scores_TE.T.argsort(-1)[:, : (T + 1) // 2]
        routing = ExpertChoice(**shared, token_EC=token_EC, gate_EC=scores_TE.T.gather(1, token_EC))
        pairs = [(e, scores_TE[t, e]) for e, row in enumerate(token_EC.tolist()) for t in row if counts[t]]
    else:
        routing = Soft(**shared, combine_TEP=torch.stack([scores_TE, scores_TE.square()], -1))
        pairs = [(e, scores_TE[t, e] ** p) for t in range(T) for e in range(E) for p in (1, 2) if counts[t]]
    want = cv_naive.cv_squared(cv_naive.importance(pairs, E, case.logits_TE.new_zeros(())))
    agree(value_of(CVSquaredLoss(CVSquared(), case.dims), case, routing), want, case.logits_TE)


@fifty
@given(case=cases())
def test_cv_squared_of_a_load_is_its_equation(case: Case) -> None:
    counted_TE = case.scores_TE if case.routing.valid_T is None else case.scores_TE * case.routing.valid_T[:, None]
    load_E = counted_TE.sum(0) * 2
    routing = TokenChoice(**{**vars(case.routing), "smooth_load_E": load_E})
    want = cv_naive.cv_squared(list(load_E))
    agree(value_of(CVSquaredLoss(CVSquared(of="load"), case.dims), case, routing), want, case.logits_TE)


def fractions(case: Case, kind: str) -> Tensor:
    """``c · f_te``: the factor of ``s_te`` in the loss, for the sequence of each token; counted in plain loops."""
    T, E = case.scores_TE.shape
    G, size = case.groups, E // case.groups
    B = 1 if kind in ("load_all", "load_first", "device_batch") else case.num_sequences
    f_TE = torch.zeros(T, E, dtype=torch.float64)
    chosen = case.sent(first=kind == "load_first")
    for b in range(B):
        tokens = [t for t in range(b * T // B, (b + 1) * T // B) if case.valid is None or case.valid[t]]
        total = sum(len(chosen[t]) for t in tokens)
        for e in range(E):
            device = range(e // size * size, (e // size + 1) * size)
            if kind == "communication":
                f = sum(any(m in chosen[t] for m in device) for t in tokens) * G / max(len(tokens), 1)
            elif kind.startswith("device"):
                f = G * sum(m in chosen[t] for t in tokens for m in device) / max(total, 1)
            else:
                f = E * sum(e in chosen[t] for t in tokens) / max(total, 1)
            for t in tokens:
                f_TE[t, e] = f
    return f_TE


KINDS: dict[str, Callable[[Case], Balancer]] = {
    "load_all": lambda case: LoadBalanceLoss(LoadBalance(), case.dims),
    "load_first": lambda case: LoadBalanceLoss(LoadBalance(count="first"), case.dims),
    "load_sequence": lambda case: LoadBalanceLoss(LoadBalance(scope="sequence"), case.dims),
    "sequence": lambda case: SequenceBalanceLoss(SequenceBalance(), case.dims),
    "device_batch": lambda case: DeviceBalanceLoss(DeviceBalance(groups=case.groups), case.dims),
    "device_sequence": lambda case: DeviceBalanceLoss(DeviceBalance(groups=case.groups, scope="sequence"), case.dims),
    "communication": lambda case: CommunicationBalanceLoss(
        CommunicationBalance(groups=case.groups, top_groups=1), case.dims
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@fifty
@given(case=cases(sigmoid=False))
def test_the_gradient_of_every_f_p_loss_on_a_softmax(kind: str, case: Case) -> None:
    """dL/dz_tj = (1/T) s_tj (f_j - sum_e f_e s_te): f a constant, T the valid tokens; exactly 0 where f is uniform."""
    (grad_TE,) = torch.autograd.grad(value_of(KINDS[kind](case), case), case.logits_TE)
    f_TE, s_TE = fractions(case, kind), case.scores_TE.detach()
    num_valid = max(sum(case.valid) if case.valid is not None else len(s_TE), 1)
    want_TE = s_TE * (f_TE - (f_TE * s_TE).sum(-1, keepdim=True)) / num_valid
    torch.testing.assert_close(grad_TE, want_TE, rtol=1e-9, atol=1e-13)


@fifty
@given(E=st.sampled_from([2, 4, 6]), K=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_even_load_gives_no_gradient_for_any_affinities(E: int, K: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = (5 * torch.randn(2 * E, E, generator=generator, dtype=torch.float64)).requires_grad_()
    scores_TE = logits_TE.softmax(-1)
    expert_TK = (torch.arange(2 * E)[:, None] + torch.arange(K)) % E
    routing = token_choice(scores_TE, expert_TK, logits_TE=logits_TE)
    case = Case(logits_TE, scores_TE, routing, 2, 2)
    for kind in KINDS.keys() - {"communication"}:
        (grad_TE,) = torch.autograd.grad(value_of(KINDS[kind](case), case), logits_TE, retain_graph=True)
        assert grad_TE.abs().max() < 1e-15, kind


LOADS = st.lists(st.lists(st.integers(0, 2**40), min_size=4, max_size=4), max_size=6)


@pytest.mark.parametrize("rule", ["sign", "proportional"])
@hundred
@given(LOADS)
def test_sign_bias_is_its_rule(rule: str, loads: list[list[int]]) -> None:
    # a rate that is a power of two, so that sums of signs are exact
    balancer = SignBiasBalancer(SignBias(rate=0.25, rule=rule), LayerDims(dim=1, num_experts=4))
    step = sign_naive.step if rule == "sign" else sign_naive.step_proportional
    bias = [0.0] * 4
    for load in loads:
        balancer.step(torch.tensor(load))
        bias = step(bias, load, 0.25)
    found = balancer.selection_bias().tolist()
    assert found == (bias if rule == "sign" else pytest.approx(bias, rel=1e-5, abs=1e-6))
