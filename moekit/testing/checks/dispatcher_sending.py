"""Checks of dispatchers on choices that the router itself does not send (``TokenChoice.sent_TK``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from moekit.contracts import ExpertBank
from moekit.routing import TokenChoice
from moekit.testing.case import Case, Check, normal, require, require_equal
from moekit.testing.dispatching import TOKENS, dispatch, experts_of, kept_TE, rechosen
from moekit.testing.probes import claimed_forms
from moekit.testing.reference import chosen_TE, naive_sum
from moekit.testing.routings import some_routing


def checks(case: Case) -> Iterator[Check]:
    """The checks of choices that are not sent, for dispatchers that carry token choice."""
    if "token_choice" in claimed_forms(case):
        yield from (check_unsent_reaches_nothing, check_unsent_takes_no_place)


def check_unsent_reaches_nothing(case: Case) -> None:
    """Carries no choice that the router does not send (``sent_TK`` False): it is in no output, gradient or drop.

    Its gate may be anything, NaN here. A second expert left out at random, or one below a threshold, is such a choice;
    a token all of whose choices are left out comes out 0. Work with ``routing.pairs()``, which leaves them out.
    """
    routing = _routing(case)
    x_TD, experts = normal(TOKENS, case.dims.dim, dtype=torch.float64), experts_of(case)
    kept = kept_TE(case, x_TD, routing)
    found, dropped = _run(case.build(), x_TD, routing, experts)
    expected, _ = _run(None, x_TD, routing, experts, kept)
    for name, value in expected.items():
        require_equal(found[name], value, f"{name} with choices that are not sent", tolerance=1e-12)
    missing = 0 if kept is None else int((chosen_TE(routing) & ~kept).sum())
    require(
        dropped == missing,
        found=f"dropped = {dropped}",
        expected=f"{missing}: what the router does not send is not dropped",
    )


def check_unsent_takes_no_place(case: Case) -> None:
    """Does not care which experts the choices name that are not sent: they push no other pair out of its place."""
    routing = _routing(case)
    assert routing.sent_TK is not None
    x_TD, experts = normal(TOKENS, case.dims.dim, dtype=torch.float64), experts_of(case)
    found, dropped = _run(case.build(), x_TD, routing, experts)
    busy = int(routing.expert_TK[-1, 1])  # where the last of the pairs that are sent goes
    others_TK = ~routing.sent_TK & (routing.expert_TK != busy).all(1, keepdim=True)  # experts of a token are distinct
    others_TK &= ~(others_TK.cumsum(1) > 1)
    crowded = replace(routing, expert_TK=routing.expert_TK.masked_fill(others_TK, busy))
    other, others_dropped = _run(case.build(), x_TD, crowded, experts)
    for name, value in found.items():
        require_equal(other[name], value, f"{name} when choices not sent name one expert", tolerance=1e-12)
    require(others_dropped == dropped, found=f"dropped = {others_dropped}", expected=f"{dropped}, as before")


def _routing(case: Case) -> TokenChoice:
    """Tokens that choose evenly, and all, some or none of whose choices are sent; NaN for the gates of the others."""
    base = some_routing("token_choice", TOKENS, case.dims.num_experts)
    assert isinstance(base, TokenChoice)
    base = rechosen(base, (torch.arange(TOKENS)[:, None] + torch.tensor([0, 3])) % case.dims.num_experts)
    sent_TK = torch.tensor([[True, False], [True, True], [False, False], [False, True]]).repeat(TOKENS // 4, 1)
    return replace(base, sent_TK=sent_TK, gate_TK=base.gate_TK.masked_fill(~sent_TK, float("nan")))


def _run(
    dispatcher: nn.Module | None,
    x_TD: Tensor,
    routing: TokenChoice,
    experts: ExpertBank,
    kept: Tensor | None = None,
) -> tuple[dict[str, Tensor], int]:
    """Outputs and gradients of the dispatcher, or of the naive sum; and what it says was dropped."""
    x_TD, gate_TK = x_TD.clone().requires_grad_(), routing.gate_TK.clone().requires_grad_()
    routing, dropped = replace(routing, gate_TK=gate_TK), 0
    if dispatcher is None:
        y_TO = naive_sum(x_TD, routing, experts, kept_TE=kept)
    else:
        out = dispatch(dispatcher, x_TD, routing, experts)
        y_TO, dropped = out.y_TO, int(out.dropped)
    leaves = {"tokens": x_TD, "gates": gate_TK, **dict(experts.named_parameters())}
    weigh_TO = normal(*y_TO.shape, seed=6, dtype=y_TO.dtype)
    grads = torch.autograd.grad((y_TO * weigh_TO).sum(), list(leaves.values()), materialize_grads=True)
    return {"y": y_TO} | {f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}, dropped
