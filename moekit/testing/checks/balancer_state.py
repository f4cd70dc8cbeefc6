"""Checks of what balancers keep between steps: their state and their selection bias. E experts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moekit.contracts import Balancer
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
from moekit.testing.checks.balancer import build, loss_of
from moekit.testing.probes import claimed_forms
from moekit.testing.routings import some_routing


def checks(case: Case) -> Iterator[Check]:
    """The checks of a balancer's state that a case's claims call for."""
    assert isinstance(case.spec, BalancerSpec)
    yield from (check_persistent_state, check_empty_step)
    if case.spec.gives_bias:
        yield from (check_bias_shape, check_bias_moves_towards_balance, check_large_loads_exact)
    else:
        yield check_gives_no_bias


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
