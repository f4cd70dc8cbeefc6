"""The conformance checks of a router, one test each: ``router/expert_choice.1-check_padding`` and so on."""

from __future__ import annotations

from collections.abc import Callable

from moekit_expert_choice import ExpertChoiceSpec, moekit_components

from moekit_testing import parametrize_checks


@parametrize_checks(
    moekit_components(), examples={"expert_choice": [ExpertChoiceSpec(per_token=c) for c in (1, 2, 16)]}
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
