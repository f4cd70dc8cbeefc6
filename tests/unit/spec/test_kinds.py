"""A mixture's parts must be of their kind and agree on the form of routing; a selection bias needs a fitting router."""

from __future__ import annotations

from typing import Any

import pytest
from pages import cases
from spec_fakes import check_overrides

from moekit.spec.fields import ConflictError
from moekit.spec.kinds import MoE
from moekit_balancers.load_balance import LoadBalance
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_models.decoder import Decoder
from moekit_models.gqa import GQA
from moekit_routers.topk import TopK

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


GOOD: dict[str, Any] = {"router": TopK(top_k=2), "experts": Glu(count=4, hidden=8), "dispatcher": Grouped()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"router": {"use": "topk", "top_k": 2}},
            "router is a dict; expected the spec of a component of kind 'router'",
        ),
        ({"router": "topk"}, r"router is a str; .* \(list them: moekit ls router\)"),
        ({"router": TopK}, "router is the class TopK; expected the spec"),
        ({"router": None}, "router is None; expected the spec"),
        ({"shared": LoadBalance()}, r"shared is LoadBalance \(a spec of kind 'balancer'\); .* of kind 'expert'"),
        ({"balancers": [LoadBalance()]}, "balancers is a list; expected a mapping from names to specs of balancers"),
        ({"balancers": {"load": Grouped()}}, r"balancers\['load'\] is Grouped \(a spec of kind 'dispatcher'\)"),
        ({"balancers": None}, "balancers is None; expected a mapping"),
    ],
)
def test_a_slot_made_in_python_takes_only_components_of_its_kind(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConflictError, match=f"^{message}"):
        MoE(**{**GOOD, **given})


def test_a_group_made_in_python_takes_only_its_own_spec_class() -> None:
    rest: dict[str, Any] = {
        "vocab": 9,
        "dim": 8,
        "depth": 2,
        "attention": GQA(heads=2, head_dim=4),
        "ffn": Glu(hidden=8),
    }
    with pytest.raises(ConflictError, match=r"^moe is MoE; expected DecoderMoE\(\.\.\.\)$"):
        Decoder(**rest, moe=MoE(**GOOD))
    assert Decoder(**rest).moe is None


def test_every_misplaced_part_is_named_at_once() -> None:
    with pytest.raises(ConflictError, match=r"^router is None; expected .*; dispatcher is a str; expected"):
        MoE(**{**GOOD, "router": None, "dispatcher": "grouped"})
