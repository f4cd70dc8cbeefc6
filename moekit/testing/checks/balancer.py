"""Checks of balancers. E experts, K experts a token, B sequences."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from moekit.contracts import BalanceContext, Balancer
from moekit.routing import Routing
from moekit.spec.kinds import BalancerSpec
from moekit.testing.case import (
    Case,
    Check,
    normal,
    require,
    require_equal,
    require_finite,
    require_same_state,
    state_of,
)
from moekit.testing.fixtures.inputs import claimed_forms
from moekit.testing.fixtures.routings import balanced, padded, rescored, skewed, some_routing


def checks(case: Case) -> Iterator[Check]:
    """The balancer checks that a case's claims call for."""
    yield from (check_perfect_balance, check_padding_counts_nothing, check_loss_gradient, check_loss_dtype)
    if _spec(case).at_balance is not None:
        yield check_loss_sees_skew
    yield from (check_persistent_state, check_empty_step)
    if _spec(case).gives_bias:
        yield from (check_bias_shape, check_bias_moves_towards_balance, check_large_loads_exact)
    else:
        yield check_gives_no_bias


def check_perfect_balance(case: Case) -> None:
    """Has a known value at perfect balance (``at_balance``, 1 unless claimed otherwise), whatever the layer's sizes.

    Perfect balance: uniform affinities, and every expert with the same load, in every sequence. A value that grew
    with E, K or T would make one coefficient mean something else in every model.
    """
    stated = _spec(case).at_balance
    for form in claimed_forms(case):
        for E, K, B in ((8, 2, 1), (8, 4, 3), (16, 2, 2)):
            sized = case.with_experts(E)
            balancer = build(sized)
            routing = balanced(form, E, K, B)
            balancer.step(routing.load_E())
            value = loss_of(balancer, routing, B)
            if value is None:
                continue
            require_finite(value, "the loss at perfect balance")
            require(
                stated is None or abs(value.item() - stated) < 1e-5,
                found=f"a loss of {value.item():.6g} for {E} experts, {K} a token, {B} sequences ({form})",
                expected=f"at_balance = {stated} (at_balance = None claims no fixed value)",
            )


def check_loss_sees_skew(case: Case) -> None:
    """Has a higher loss when one expert takes all the load with all the affinity than at perfect balance."""
    E = case.dims.num_experts
    for form in claimed_forms(case):
        balancer = build(case)
        even = balanced(form, E, 2, 1)
        uneven = skewed(form, E, 16)
        at_balance = _loss_after(balancer, even)
        at_skew = _loss_after(balancer, uneven)
        if at_balance is not None and at_skew is not None and form != "expert_choice":
            require(
                at_skew.item() > at_balance.item(),
                found=f"a loss of {at_skew.item():.4g} with all load on one expert, {at_balance.item():.4g} with even "
                f"load ({form})",
                expected="more for the skewed one",
            )


def check_padding_counts_nothing(case: Case) -> None:
    """Does not see padding: sequences padded to twice their length (with NaN in it) have the same loss and gradient."""
    B, S, E = 2, 6, case.dims.num_experts
    for form in claimed_forms(case):
        if form == "expert_choice":
            continue  # who is chosen depends on the padding: the router's matter
        plain = some_routing(form, B * S, E)
        valid_T = (torch.arange(2 * S) < S).repeat(B)
        with_padding = padded(plain, valid_T)
        outcomes = []
        for routing in (plain, with_padding):
            balancer = build(case)
            scores_TE = routing.scores_TE.clone().requires_grad_()
            object.__setattr__(routing, "scores_TE", scores_TE)
            loss = loss_of(balancer, routing, B)
            if loss is None:
                return
            if loss.requires_grad:
                torch.autograd.backward(loss)
            outcomes.append((loss, scores_TE.grad))
        (loss, grad), (loss_padded, grad_padded) = outcomes
        require_equal(loss_padded, loss, f"the loss with padding ({form})", tolerance=1e-9)
        if grad is not None and grad_padded is not None:
            require_equal(grad_padded[valid_T], grad, f"the loss's gradient with padding ({form})", tolerance=1e-9)


def check_loss_gradient(case: Case) -> None:
    """Has a loss that trains: a finite gradient, not all 0, to scores or logits. Or no loss at all (None)."""
    for form in claimed_forms(case):
        base = some_routing(form, 12, case.dims.num_experts)
        logits_TE = base.logits_TE.clone().requires_grad_()
        loss = loss_of(build(case), rescored(base, logits_TE), 2)
        if loss is None:
            continue
        require(loss.ndim == 0, found=f"a loss of shape {tuple(loss.shape)}", expected="a 0-d tensor")
        require(loss.requires_grad, found=f"a loss without a gradient ({form})", expected="one that reaches the scores")
        torch.autograd.backward(loss)
        require_finite(logits_TE.grad, f"the loss's gradient ({form})")
        assert logits_TE.grad is not None
        require(bool(logits_TE.grad.any()), found=f"a gradient of 0 ({form})", expected="one that trains the router")


def check_loss_dtype(case: Case) -> None:
    """Computes its loss in fp32 at least, under autocast and after the model was cast to bf16."""
    for form in claimed_forms(case):
        routing = some_routing(form, 12, case.dims.num_experts, dtype=torch.float32)
        balancer = build(case)
        exact = loss_of(balancer, routing, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = loss_of(balancer, routing, 2)
        cast = loss_of(balancer.bfloat16(), routing, 2)
        for found, how in ((under_autocast, "under autocast"), (cast, "after .bfloat16()")):
            if exact is None or found is None:
                continue
            require(found.dtype == torch.float32, found=f"a loss in {found.dtype} {how}", expected="float32")
            require_equal(found, exact, f"the loss {how}", tolerance=1e-5)


def loss_of(balancer: Balancer, routing: Routing, B: int) -> Tensor | None:
    """The loss of one forward pass over B sequences."""
    term = balancer.loss(routing, BalanceContext(num_sequences=B, training=True))
    return None if term is None else term.value


def _loss_after(balancer: Balancer, routing: Routing) -> Tensor | None:
    """The loss of a routing when the previous step's load was the same."""
    fresh = copy.deepcopy(balancer)
    fresh.step(routing.load_E())
    return loss_of(fresh, routing, 1)


def build(case: Case) -> Balancer:
    """The balancer of a case."""
    balancer = case.build()
    assert isinstance(balancer, Balancer)
    return balancer


def _spec(case: Case) -> BalancerSpec:
    assert isinstance(case.spec, BalancerSpec)
    return case.spec


def check_persistent_state(case: Case) -> None:
    """Keeps all that ``step`` changes in its state dict, so that a resumed run goes on as if never stopped."""
    form, E = claimed_forms(case)[-1], case.dims.num_experts
    balancer, resumed = build(case), build(case)
    for seed in range(3):
        balancer.step(_load(E, seed))
    resumed.load_state_dict(balancer.state_dict(), strict=True)
    require_same_state(state_of(balancer), state_of(resumed), "saving and loading after three steps")
    for one in (balancer, resumed):
        one.step(_load(E, 3))
    routing = some_routing(form, 12, E)
    pairs = [(loss_of(balancer, routing, 2), loss_of(resumed, routing, 2), "the loss")]
    pairs.append((balancer.selection_bias(), resumed.selection_bias(), "the bias"))
    for kept, found, what in pairs:
        if kept is not None and found is not None:
            require_equal(found, kept, f"{what} of a resumed run")


def check_empty_step(case: Case) -> None:
    """Bears a step without any tokens: its state stays finite, and so do loss and bias."""
    E = case.dims.num_experts
    for before in (0, 2):
        balancer = build(case)
        for seed in range(before):
            balancer.step(_load(E, seed))
        balancer.step(torch.zeros(E, dtype=torch.int64))
        for name, tensor in balancer.state_dict().items():
            if tensor.is_floating_point():
                require_finite(tensor, f"'{name}' after a step without tokens")
        loss = loss_of(balancer, some_routing(claimed_forms(case)[-1], 12, E), 2)
        if loss is not None:
            require_finite(loss, "the loss after a step without tokens")


def check_gives_no_bias(case: Case) -> None:
    """Gives no selection bias, before and after a step, as it claims (``gives_bias = False``)."""
    balancer = build(case)
    for when in ("at first", "after a step"):
        bias_E = balancer.selection_bias()
        require(bias_E is None, found=f"a selection bias {when}", expected="None (or the claim gives_bias = True)")
        balancer.step(_load(case.dims.num_experts, 0))


def check_bias_shape(case: Case) -> None:
    """Gives an fp32 bias ``[E]``, finite and without gradient, also in a model cast to bf16 (``gives_bias``).

    In bf16 a bias of 1 could not move by 1e-3.
    """
    E = case.dims.num_experts
    for balancer, how in ((build(case), "as built"), (build(case).bfloat16(), "after .bfloat16()")):
        for _ in range(2):
            bias_E = balancer.selection_bias()
            require(
                bias_E is not None and bias_E.shape == (E,) and bias_E.dtype == torch.float32,
                found="None" if bias_E is None else f"{bias_E.dtype} {tuple(bias_E.shape)} {how}",
                expected=f"float32 ({E},)",
            )
            require_finite(bias_E, f"the bias {how}")
            assert bias_E is not None
            require(not bias_E.requires_grad, found="a bias that requires grad", expected="one moved by step alone")
            balancer.step(_load(E, 0))


def check_bias_moves_towards_balance(case: Case) -> None:
    """Moves the bias of an overloaded expert down, and that of an idle one up, relative to each other."""
    E = case.dims.num_experts
    balancer = build(case)
    before = _bias(balancer)
    load_E = torch.full((E,), 100)
    load_E[1], load_E[2] = 160, 40
    balancer.step(load_E)
    moved_E = _bias(balancer) - before
    busy, idle = moved_E[1].item(), moved_E[2].item()
    require(
        idle > busy,
        found=f"the bias of a busy expert moves by {busy:+.4g}, that of an idle one by {idle:+.4g}",
        expected="more for the idle one",
    )


def check_large_loads_exact(case: Case) -> None:
    """Counts exactly beyond 2**24, where fp32 skips whole numbers: loads are int64 and must be compared so."""
    E = case.dims.num_experts
    balancer = build(case)
    before = _bias(balancer)
    load_E = torch.full((E,), 2**25)
    load_E[1], load_E[2] = 2**25 + 1, 2**25 - 1
    balancer.step(load_E)
    moved_E = _bias(balancer) - before
    busy, idle = moved_E[1].item(), moved_E[2].item()
    require(
        idle > busy,
        found=f"loads 2**25 + 1 and 2**25 - 1 move their biases by {busy:+.4g} and {idle:+.4g}",
        expected="more for the second",
    )


def _load(E: int, seed: int) -> Tensor:
    return (normal(E, seed=seed).abs() * 100).long()


def _bias(balancer: Balancer) -> Tensor:
    bias_E = balancer.selection_bias()
    assert bias_E is not None
    return bias_E.clone()
