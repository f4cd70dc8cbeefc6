"""Checks of what a router's spec claims: ``form``, ``active``, ``takes_bias``, ``causal``. T tokens, E experts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from moekit.errors import MoekitError
from moekit.routing import Routing, TokenChoice
from moekit.spec.kinds import RouterSpec
from moekit.testing.case import (
    Case,
    Check,
    normal,
    require,
    require_equal,
    seeded,
    tensors_in,
)
from moekit.testing.probes import route
from moekit.testing.reference import chosen_TE, weights_TX


def checks(case: Case) -> Iterator[Check]:
    """The checks of what a router's spec claims."""
    yield from (check_form, check_active)
    yield check_bias_chooses_only if _spec(case).takes_bias else check_bias_is_ignored
    if _spec(case).causal:
        yield check_causal


def check_form(case: Case) -> None:
    """Answers with the form of routing that its spec claims, and hands ``valid_T`` on in it.

    Composition decides from the claim which dispatchers and balancers fit; padding would count if the mask were lost.
    """
    router, valid_T = case.build(), torch.tensor([True, False, True])
    routing = route(router, normal(3, case.dims.dim), valid_T)
    require(
        routing.form == _spec(case).form,
        found=f"{type(routing).__name__} (form '{routing.form}')",
        expected=f"the claim form = '{_spec(case).form}'",
    )
    same = routing.valid_T is not None and torch.equal(routing.valid_T, valid_T)
    require(same, found=f"routing.valid_T = {routing.valid_T}", expected=f"{valid_T}, as given")


def check_active(case: Case) -> None:
    """Says in ``spec.active(E)`` how many experts a token runs through; active parameters are counted with it."""
    E = case.dims.num_experts
    active = _spec(case).active(E)
    routing = route(case.build(), normal(3 * E, case.dims.dim))
    most = E if not isinstance(routing, TokenChoice) else routing.expert_TK.shape[1]
    require(
        math.isfinite(active) and 0 < active <= most,
        found=f"active({E}) = {active}",
        expected=f"more than 0 and at most {most}",
    )


def check_bias_chooses_only(case: Case) -> None:
    """Lets a selection bias choose experts and nothing else: it never enters a gate or a score (``takes_bias``).

    A bias within the gates would train the experts towards it; the loss-free balance rests on keeping it out.
    """
    E, x_TD = case.dims.num_experts, normal(9, case.dims.dim, dtype=torch.float64)
    router = case.build().double().eval()
    plain = route(router, x_TD)
    for size in (1e-2, 1e-4, 1e-6, 1e-8):
        nudged = route(router, x_TD, bias_E=size * normal(E, seed=3))
        if torch.equal(chosen_TE(nudged), chosen_TE(plain)):
            require_equal(weights_TX(nudged), weights_TX(plain), f"gates under a bias of {size:g}", tolerance=1e-12)
            break
    favourite = int(chosen_TE(plain).sum(0).argmin())
    bias_E = torch.zeros(E)
    bias_E[favourite] = 1e3
    bias_E.requires_grad_()
    biased = route(router, x_TD, bias_E=bias_E)
    for name in ("logits_TE", "scores_TE"):
        require_equal(getattr(biased, name), getattr(plain, name), f"{name} under a bias")
    before, after = (int(r.load_E()[favourite]) for r in (plain, biased))
    require(
        after > before,
        found=f"load of expert {favourite} goes from {before} to {after} of 9 tokens under a bias of 1000",
        expected="more tokens (or the claim takes_bias = False)",
    )
    weights = weights_TX(biased)
    top = float(weights.detach().abs().max())
    require(top < 100, found=f"a gate of {top:.4g} under a bias of 1000", expected="gates from unbiased scores")
    if weights.requires_grad:
        torch.autograd.backward((weights * normal(*weights.shape, seed=5)).sum())
    reached = bias_E.grad is not None and bool(bias_E.grad.any())
    require(not reached, found="a gradient from the gates to the bias", expected="none")


def check_bias_is_ignored(case: Case) -> None:
    """Ignores a selection bias, or refuses it with a ``MoekitError``, as it claims (``takes_bias = False``)."""
    router, x_TD = case.build().eval(), normal(9, case.dims.dim)
    plain = tensors_in(route(router, x_TD))
    try:
        biased = tensors_in(route(router, x_TD, bias_E=10 * normal(case.dims.num_experts, seed=3)))
    except MoekitError:
        return
    for name, value in plain.items():
        require_equal(biased[name], value, f"{name} under a bias")


def check_causal(case: Case) -> None:
    """Routes a token without looking at later ones, as it claims (``causal``); a decoder may only use such routers.

    Otherwise the choice of experts tells a language model about the words it is to predict.
    """
    router, x_TD = case.build(), normal(10, case.dims.dim)
    changed_TD = x_TD.clone()
    changed_TD[6:] = 5 * normal(4, case.dims.dim, seed=8)
    for training in (False, True):
        router.train(training)
        before, after = (_routed(router, x) for x in (x_TD, changed_TD))
        require_equal(
            weights_TX(after)[:6],
            weights_TX(before)[:6],
            f"gates of tokens before the changed ones, in {'training' if training else 'eval'} mode",
            tolerance=1e-6,
        )
    cut = _routed(router.eval(), x_TD[:6])
    full = _routed(router, x_TD)
    require_equal(weights_TX(full)[:6], weights_TX(cut), "gates with later tokens present", tolerance=1e-6)


def _routed(router: nn.Module, x_TD: Tensor) -> Routing:
    with seeded(4):
        return route(router, x_TD)


def _spec(case: Case) -> RouterSpec:
    assert isinstance(case.spec, RouterSpec)
    return case.spec
