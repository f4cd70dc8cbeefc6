"""Checks of dispatchers on choices that the router itself does not send (``TokenChoice.sent_TK``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from moekit.contracts import ExpertBank
from moekit.routing import TokenChoice
from moekit.testing.case import Case, Check, normal, require, require_equal
from moekit.testing.probes import claimed_forms
from moekit.testing.reference import TanhExperts, naive_sum
from moekit.testing.routings import some_routing


def checks(case: Case) -> Iterator[Check]:
    """The check of choices that are not sent, for dispatchers that carry token choice."""
    if "token_choice" in claimed_forms(case):
        yield check_unsent_reaches_nothing


def check_unsent_reaches_nothing(case: Case) -> None:
    """Carries no choice that the router does not send (``sent_TK`` False): it is in no output, gradient or drop.

    Its gate may be anything, NaN here. A second expert left out at random, or one below a threshold, is such a choice;
    a token all of whose choices are left out comes out 0. Work with ``routing.pairs()``, which leaves them out.
    """
    E, T = case.dims.num_experts, 8
    base = some_routing("token_choice", T, E)
    assert isinstance(base, TokenChoice)
    expert_TK = (torch.arange(T)[:, None] + torch.tensor([0, 3])) % E  # even, so that it fits any capacity
    sent_TK = torch.tensor([[True, False], [True, True], [False, False], [False, True]]).repeat(2, 1)
    gate_TK = base.gate_TK.masked_fill(~sent_TK, float("nan"))
    routing = replace(base, expert_TK=expert_TK, sent_TK=sent_TK, gate_TK=gate_TK)
    x_TD = normal(T, case.dims.dim, dtype=torch.float64)
    experts = TanhExperts(E, case.dims.dim, case.dims.out_dim)
    found, dropped = _run(case.build(), x_TD, routing, experts)
    expected, _ = _run(None, x_TD, routing, experts)
    for name, value in expected.items():
        require_equal(found[name], value, f"{name} with choices that are not sent", tolerance=1e-12)
    require(dropped == 0, found=f"dropped = {dropped}", expected="0: what the router does not send is not dropped")


def _run(
    dispatcher: nn.Module | None, x_TD: Tensor, routing: TokenChoice, experts: ExpertBank
) -> tuple[dict[str, Tensor], int]:
    """Outputs and gradients of the dispatcher, or of the naive sum; and what it says was dropped."""
    x_TD, gate_TK = x_TD.clone().requires_grad_(), routing.gate_TK.clone().requires_grad_()
    routing, dropped = replace(routing, gate_TK=gate_TK), 0
    if dispatcher is None:
        y_TO = naive_sum(x_TD, routing, experts)
    else:
        out = dispatcher(x_TD, routing, experts)
        y_TO, dropped = out.y_TO, int(out.dropped)
    leaves = {"tokens": x_TD, "gates": gate_TK, **dict(experts.named_parameters())}
    weigh_TO = normal(*y_TO.shape, seed=6, dtype=y_TO.dtype)
    grads = torch.autograd.grad((y_TO * weigh_TO).sum(), list(leaves.values()), materialize_grads=True)
    return {"y": y_TO} | {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}, dropped
