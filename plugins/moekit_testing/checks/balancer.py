"""Checks of balancers. E experts, K experts per token, B sequences."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.contracts import BalanceContext, Balancer
from moekit.routing import Routing
from moekit.spec.kinds import BalancerSpec
from moekit_testing.assertions import require, require_equal, require_finite, require_same_state, state_of
from moekit_testing.case import Case, Check, Omitted, claimed, normal
from moekit_testing.fixtures.inputs import Probe, claimed_forms
from moekit_testing.fixtures.routings import balanced, padded, rescored, skewed, some_routing


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""
    E, form = case.dims.num_experts, claimed_forms(case)[-1]
    template = some_routing(form, 6, E, dtype=torch.float32)

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(module, Balancer)
        routing = rescored(template, inputs["logits_TE"])
        term, bias_E = module.loss(routing, BalanceContext(num_sequences=2, training=True)), module.selection_bias()
        out = {} if term is None else {"loss": term.value}
        return out if bias_E is None else {**out, "selection_bias_E": bias_E}

    return Probe(inputs={"logits_TE": normal(6, E)}, run=run)


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The balancer checks that a case's claims call for."""
    yield from (check_perfect_balance, check_padding_counts_nothing, check_loss_gradient, check_loss_dtype)
    states_value = case.spec_as(BalancerSpec).at_balance is not None
    yield check_loss_sees_skew if states_value else Omitted(check_loss_sees_skew, "its spec has at_balance = None")
    yield from (check_persistent_state, check_empty_step)
    yield from claimed(case, "gives_bias", check_bias_shape, check_bias_moves_towards_balance, check_large_loads_exact)
    if not case.spec_as(BalancerSpec).gives_bias:
        yield check_gives_no_bias


def check_perfect_balance(case: Case) -> None:
    """Has a known value at perfect balance (``at_balance``, 1 unless claimed otherwise) for layers of any size.

    Perfect balance: uniform affinities, and the same load for every expert in every sequence. If the value grew with
    E, K or T, the same coefficient would mean something different in every model.
    """
    stated = case.spec_as(BalancerSpec).at_balance
    for form in claimed_forms(case):
        for E, K, B in ((8, 2, 1), (8, 4, 3), (16, 2, 2)):
            sized = case.with_experts(E)
            balancer = sized.build_as(Balancer)
            routing = balanced(form, E, K, B)
            balancer.step(routing.load_E())
            value = _loss(balancer, routing, B)
            if value is None:
                continue
            require_finite(value, "the loss at perfect balance")
            require(
                stated is None or abs(value.item() - stated) < 1e-5,
                found=f"a loss of {value.item():.6g} for {E} experts, {K} a token, {B} sequences ({form})",
                expected=f"at_balance = {stated} (at_balance = None claims no fixed value)",
            )


def check_loss_sees_skew(case: Case) -> None:
    """Has a higher loss when one expert has all load and affinity than at perfect balance."""
    E = case.dims.num_experts
    for form in claimed_forms(case):
        balancer = case.build_as(Balancer)
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
    """Ignores padding: padding sequences to twice their length (with NaN) changes neither loss nor gradient."""
    B, S, E = 2, 6, case.dims.num_experts
    for form in claimed_forms(case):
        if form == "expert_choice":
            continue  # the choice itself depends on padding, which is the router's responsibility
        plain = some_routing(form, B * S, E)
        valid_T = (torch.arange(2 * S) < S).repeat(B)
        with_padding = padded(plain, valid_T)
        outcomes = []
        for routing in (plain, with_padding):
            balancer = case.build_as(Balancer)
            scores_TE = routing.scores_TE.clone().requires_grad_()
            object.__setattr__(routing, "scores_TE", scores_TE)
            loss = _loss(balancer, routing, B)
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
    """Has a loss with a finite, nonzero gradient to scores or logits; or no loss at all (None)."""
    for form in claimed_forms(case):
        base = some_routing(form, 12, case.dims.num_experts)
        logits_TE = base.logits_TE.clone().requires_grad_()
        loss = _loss(case.build_as(Balancer), rescored(base, logits_TE), 2)
        if loss is None:
            continue
        require(loss.ndim == 0, found=f"a loss of shape {tuple(loss.shape)}", expected="a 0-d tensor")
        require(loss.requires_grad, found=f"a loss without a gradient ({form})", expected="one that reaches the scores")
        torch.autograd.backward(loss)
        require_finite(logits_TE.grad, f"the loss's gradient ({form})")
        assert logits_TE.grad is not None
        require(bool(logits_TE.grad.any()), found=f"a gradient of 0 ({form})", expected="one that trains the router")


def check_loss_dtype(case: Case) -> None:
    """Computes its loss in fp32 at least, also under autocast and after a cast of the model to bf16."""
    for form in claimed_forms(case):
        routing = some_routing(form, 12, case.dims.num_experts, dtype=torch.float32)
        balancer = case.build_as(Balancer)
        exact = _loss(balancer, routing, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast = _loss(balancer, routing, 2)
        cast = _loss(balancer.bfloat16(), routing, 2)
        for found, how in ((under_autocast, "under autocast"), (cast, "after .bfloat16()")):
            if exact is None or found is None:
                continue
            require(found.dtype == torch.float32, found=f"a loss in {found.dtype} {how}", expected="float32")
            require_equal(found, exact, f"the loss {how}", tolerance=1e-5)


def check_persistent_state(case: Case) -> None:
    """Keeps all state that ``step`` changes in its state dict, so that a resumed run equals an uninterrupted one."""
    form, E = claimed_forms(case)[-1], case.dims.num_experts
    balancer, resumed = case.build_as(Balancer), case.build_as(Balancer)
    for seed in range(3):
        balancer.step(_load(E, seed))
    resumed.load_state_dict(balancer.state_dict(), strict=True)
    require_same_state(state_of(balancer), state_of(resumed), "saving and loading after three steps")
    for one in (balancer, resumed):
        one.step(_load(E, 3))
    routing = some_routing(form, 12, E)
    pairs = [(_loss(balancer, routing, 2), _loss(resumed, routing, 2), "the loss")]
    pairs.append((balancer.selection_bias(), resumed.selection_bias(), "the bias"))
    for kept, found, what in pairs:
        if kept is not None and found is not None:
            require_equal(found, kept, f"{what} of a resumed run")


def check_empty_step(case: Case) -> None:
    """Handles a step without any tokens: its state, loss and bias stay finite."""
    E = case.dims.num_experts
    for before in (0, 2):
        balancer = case.build_as(Balancer)
        for seed in range(before):
            balancer.step(_load(E, seed))
        balancer.step(torch.zeros(E, dtype=torch.int64))
        for name, tensor in balancer.state_dict().items():
            if tensor.is_floating_point():
                require_finite(tensor, f"'{name}' after a step without tokens")
        loss = _loss(balancer, some_routing(claimed_forms(case)[-1], 12, E), 2)
        if loss is not None:
            require_finite(loss, "the loss after a step without tokens")


def check_gives_no_bias(case: Case) -> None:
    """Gives no selection bias, before or after a step, as it claims (``gives_bias = False``)."""
    balancer = case.build_as(Balancer)
    for when in ("at first", "after a step"):
        bias_E = balancer.selection_bias()
        require(bias_E is None, found=f"a selection bias {when}", expected="None (or the claim gives_bias = True)")
        balancer.step(_load(case.dims.num_experts, 0))


def check_bias_shape(case: Case) -> None:
    """Gives a finite fp32 bias ``[E]`` that requires no gradient, also in a model cast to bf16 (``gives_bias``).

    In bf16 a bias of 1 could not change by 1e-3.
    """
    E = case.dims.num_experts
    for balancer, how in (
        (case.build_as(Balancer), "as built"),
        (case.build_as(Balancer).bfloat16(), "after .bfloat16()"),
    ):
        for _ in range(2):
            bias_E = balancer.selection_bias()
            require(
                bias_E is not None and bias_E.shape == (E,) and bias_E.dtype == torch.float32,
                found="None" if bias_E is None else f"{bias_E.dtype} {tuple(bias_E.shape)} {how}",
                expected=f"float32 ({E},)",
            )
            require_finite(bias_E, f"the bias {how}")
            assert bias_E is not None
            require(not bias_E.requires_grad, found="a bias that requires grad", expected="one that only step changes")
            balancer.step(_load(E, 0))


def check_bias_moves_towards_balance(case: Case) -> None:
    """Raises the bias of an idle expert relative to that of an overloaded one."""
    busy, idle = _bias_moves(case, 100, 60)
    require(
        idle > busy,
        found=f"the bias of a busy expert moves by {busy:+.4g}, that of an idle one by {idle:+.4g}",
        expected="more for the idle one",
    )


def check_large_loads_exact(case: Case) -> None:
    """Counts exactly above 2**24, where fp32 skips integers: loads are int64 and must be compared as such."""
    busy, idle = _bias_moves(case, 2**25, 1)
    require(
        idle > busy,
        found=f"loads 2**25 + 1 and 2**25 - 1 move their biases by {busy:+.4g} and {idle:+.4g}",
        expected="more for the second",
    )


def _loss(balancer: Balancer, routing: Routing, B: int) -> Tensor | None:
    """The loss of one forward pass over B sequences."""
    term = balancer.loss(routing, BalanceContext(num_sequences=B, training=True))
    return None if term is None else term.value


def _loss_after(balancer: Balancer, routing: Routing) -> Tensor | None:
    """The loss of a routing after a step with the same load."""
    fresh = copy.deepcopy(balancer)
    fresh.step(routing.load_E())
    return _loss(fresh, routing, 1)


def _bias_moves(case: Case, load: int, by: int) -> tuple[float, float]:
    """How far a step moves the biases of an expert with ``by`` more than the others' load, and of one with less."""
    balancer = case.build_as(Balancer)
    before = _bias(balancer)
    load_E = torch.full((case.dims.num_experts,), load)
    load_E[1], load_E[2] = load + by, load - by
    balancer.step(load_E)
    moved_E = _bias(balancer) - before
    return moved_E[1].item(), moved_E[2].item()


def _load(E: int, seed: int) -> Tensor:
    return (normal(E, seed=seed).abs() * 100).long()


def _bias(balancer: Balancer) -> Tensor:
    bias_E = balancer.selection_bias()
    assert bias_E is not None
    return bias_E.clone()
