"""Tests of the conformance kit: every check passes healthy components, and catches those with the fault it is for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import broken_common
import broken_evaluation
import broken_layers
import broken_models
import broken_routers
import broken_runs
import broken_training
import pytest
from healthy import HEALTHY

import moekit_testing.checks
from moekit import Component
from moekit_testing import BoundCheck, CheckFailure, checks_for, parametrize_checks
from moekit_testing.case import Check
from moekit_testing.cases import cases_of

BROKEN: dict[str, list[Component]] = {}
for file in (
    broken_common,
    broken_routers,
    broken_layers,
    broken_training,
    broken_models,
    broken_evaluation,
    broken_runs,
):
    BROKEN |= file.BROKEN


def all_checks() -> dict[str, Check]:
    """Every check in the kit's files, whether or not a component needs it."""
    found: dict[str, Check] = {}
    for file in pkgutil.iter_modules(moekit_testing.checks.__path__):
        module = importlib.import_module(f"moekit_testing.checks.{file.name}")
        for name, value in vars(module).items():
            if name.startswith("check_") and getattr(value, "__module__", "") == module.__name__:
                assert name not in found, f"two checks are called {name}"
                found[name] = value
    return found


CHECKS = all_checks()


@parametrize_checks(HEALTHY)
def test_healthy_components_pass(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", CHECKS)
def test_some_healthy_component_meets_every_check(name: str) -> None:
    met = {bound.name for case in cases_of(HEALTHY, {}) for bound in checks_for(case)}
    assert name in met


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_has_a_component_to_catch(name: str) -> None:
    assert BROKEN.get(name), f"no broken component for {name}: add one to a broken_*.py"


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_says_what_it_demands(name: str) -> None:
    first = (CHECKS[name].__doc__ or "").partition("\n")[0]
    assert first and (first.endswith((".", ":", ","))), f"the first line of {name} is: {first}"


def _name(value: object) -> str:
    return getattr(value.target, "__name__", "") if isinstance(value, Component) else str(value)


@pytest.mark.parametrize(
    ("name", "broken"), [(name, broken) for name, many in BROKEN.items() for broken in many], ids=_name
)
def test_broken_component_is_caught(name: str, broken: Component) -> None:
    (case,) = cases_of([broken], {})
    with pytest.raises(CheckFailure, match=f"^{broken.kind}/{broken.name} fails {name}\n  demanded  ") as caught:
        BoundCheck(CHECKS[name], case)()
    message = str(caught.value)
    assert "\n  found     " in message and "\n  expected  " in message and f"\n  options   {case.spec}" in message
