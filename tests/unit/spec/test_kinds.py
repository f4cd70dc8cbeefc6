"""A mixture's parts must agree on the form of routing, and a selection bias needs a router that takes it."""

from __future__ import annotations

from pages import cases
from spec_fakes import check_overrides

REPORTS = r"""
$ model.moe.router.use=blend  # conflict of forms
2 problems

Blend routes by 'soft', but dispatcher Walk takes expert_choice, token_choice
  at model.moe  in command line

balancer 'bias' (Nudge) gives a selection bias, but router Blend takes none: balance by a loss, or choose another router
  at model.moe  in command line

$ model.moe.balancers.router=nudge  # a name that the report uses
a balancer cannot be named 'router': the report has the router's own loss under that name
  at model.moe  in command line

$ model.moe.dispatcher.use=pour  # conflict of dispatcher
Pick routes by 'token_choice', but dispatcher Pour takes soft
  at model.moe  in command line
"""


@cases(REPORTS)
def test_parts_of_a_mixture_that_do_not_fit_are_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)
