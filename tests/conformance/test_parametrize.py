"""``parametrize_checks`` from a plugin author's view: names of tests, expected failures, and wrong arguments."""

from __future__ import annotations

import re

import pytest
from healthy import Pick, PickRouter, component

from moekit import MoekitError
from moekit.registry import current
from moekit_testing import parametrize_checks
from moekit_testing.assertions import CheckFailure
from moekit_testing.cases import cases_of

pytest_plugins = ["pytester"]

MINE = component(Pick, PickRouter)

AUTHORS_FILE = """
    from broken_routers import BiasInGate
    from healthy import Pick, PickRouter, component
    from moekit_testing import parametrize_checks

    @parametrize_checks(
        [component(Pick, BiasInGate)],
        examples={"pick": [Pick(top_k=1), Pick(top_k=2)]},
        expected_failures={
            "router/pick": {"check_bias_chooses_only": "gates carry the bias, on purpose"},
            "router/pick.2": {"check_shapes": "thought to fail"},
        },
    )
    def test_conformance(check):
        check()

    @parametrize_checks([component(Pick, BiasInGate)])
    def test_caught(check):
        check()
"""


def test_a_plugin_authors_run_reports_failures_and_expected_failures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=AUTHORS_FILE)
    result = pytester.runpytest_inprocess("-rxf", "-p", "no:cacheprovider", "-k", "check_bias or check_shapes")
    result.assert_outcomes(passed=2, failed=2, xfailed=2)
    result.stdout.fnmatch_lines_random(
        [
            "XFAIL *[[]router/pick.1-check_bias_chooses_only] - gates carry the bias, on purpose",
            "XFAIL *[[]router/pick.2-check_bias_chooses_only] - gates carry the bias, on purpose",
            "FAILED *[[]router/pick.2-check_shapes] - [[]XPASS(strict)] thought to fail",
            "FAILED *[[]router/pick-check_bias_chooses_only]*",
            "E*router/pick fails check_bias_chooses_only",
            "E*demanded  Uses a selection bias to choose experts and for nothing else, never in a gate or a score*",
            "E*found     gates under a bias of 0.01: *",
            "E*expected *, to 1e-12 relative",
            "E*options   Pick(top_k=2)",
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"examples": {"pik": [Pick()]}},
            "examples for 'pik', which is not tested here\n  did you mean 'pick'?\n  tested: pick, router/pick",
        ),
        (
            {"expected_failures": {"router/pik": {"check_compile": "why"}}},
            "expected failures of 'router/pik', which is not tested here\n  did you mean 'router/pick'?\n"
            "  tested: router/pick",
        ),
        (
            {"expected_failures": {"router/pick": {"check_compiles": "why"}}},
            "an expected failure of 'router/pick' in 'check_compiles', which is not tested here\n"
            "  did you mean 'check_compile'?\n  tested: check_",
        ),
    ],
)
def test_unknown_names_raise_an_error_with_the_nearest_one(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MoekitError, match=re.escape(message)):
        parametrize_checks([MINE], **arguments)  # type: ignore[arg-type]


def test_options_without_a_default_need_an_example() -> None:
    from moekit_routers.topk import TopK

    component = current().get("router", "topk")

    message = "router 'topk' has no default for top_k: give an example, examples={'topk': [TopK(top_k=...)]}"
    message += "\n  in the shell: moekit check router/topk top_k=..."
    with pytest.raises(MoekitError, match=f"^{re.escape(message)}$"):
        list(cases_of([component], {}))
    names = [param.id for param in parametrize_checks([component, MINE]).args[1]]
    assert names[-1] == "router/topk-example"
    assert "router/pick-check_shapes" in names
    with pytest.raises(CheckFailure, match=f"^{re.escape(message)}$"):
        parametrize_checks([component]).args[1][0].values[0]()
    (case,) = cases_of([component], {"topk": [TopK(top_k=2)]})
    assert case.label == "router/topk"
