"""``moekit check``: what became of every check, the exit code, and mistakes in what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fake_plugins
import pytest
import torch
from torch import nn

from moekit import Component, option
from moekit.cli import main
from moekit.registry import temporary
from moekit.spec.kinds import OptimizerSpec, ScheduleSpec
from moekit_testing.checks import optimizer as optimizer_checks

Captured = pytest.CaptureFixture[str]


class Flat(ScheduleSpec):
    """A constant."""

    level: float = option(1.0, "the factor", ge=0)


class Needs(ScheduleSpec):
    """A constant that must be given."""

    level: float = option(help="the factor", ge=0)


class Whole(OptimizerSpec):
    """Gradient descent, for whole tensors."""

    takes_shards: ClassVar[bool] = False


def flat(spec: Flat | Needs, total_steps: int) -> Callable[[int], float]:
    return lambda step: spec.level


def whole(spec: Whole, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


WRONG = {"check_schedule_factors": "thought to fail"}
RIGHT = {"check_schedule_factors": "rises above 1 on purpose"}


@pytest.fixture(autouse=True)
def _plugin() -> Iterator[None]:
    offered = [
        Component(name="flat", spec=Flat, target=flat, summary="a constant"),
        Component(name="whole", spec=Whole, target=whole, summary="for whole tensors"),
    ]
    with temporary(fake_plugins.module("acme", components=offered)):
        yield


def check(capsys: Captured, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the results by the check's name."""
    code = main(["check", *words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, {result["check"]: result for result in found["results"]} | {"counts": found["counts"]}


def test_a_component_that_passes_exits_with_0_and_lists_every_check(capsys: Captured) -> None:
    assert main(["check", "schedule/flat"]) == 0
    out = capsys.readouterr().out
    assert "schedule/flat  Flat(level=1.0)" in out
    assert [line.split()[1] for line in out.splitlines() if "passed  │" in line or " passed │" in line] == [
        "check_description",
        "check_constructor",
        "check_schedule_factors",
        "check_schedule_repeats",
    ]
    assert "4 passed in " in out


def test_a_failure_exits_with_1_and_says_what_was_demanded_found_and_expected(capsys: Captured) -> None:
    assert main(["check", "flat", "level=2"]) == 1
    out = capsys.readouterr().out
    assert "schedule/flat fails check_schedule_factors\n  demanded  Returns for every step of a run" in out
    assert "  found     a factor of 2.0 at step 0 of 1\n  expected  0 to 1\n  options   Flat(level=2.0)" in out
    assert "3 passed, 1 failed in " in out


def test_a_check_whose_capability_is_not_claimed_is_skipped_with_the_reason(capsys: Captured) -> None:
    code, found = check(capsys, "optimizer/whole")
    assert code == 0
    assert found["check_takes_shards"]["status"] == "skipped"
    assert found["check_takes_shards"]["reason"] == "Whole does not claim 'takes_shards'"
    assert optimizer_checks.check_takes_shards.__name__ in found


@pytest.mark.parametrize(
    ("known", "level", "code", "status"),
    [(RIGHT, "2", 0, "known failure"), (WRONG, "1", 1, "failed"), ({}, "2", 1, "failed")],
)
def test_a_known_failure_counts_as_one_only_once_it_passes(
    capsys: Captured, known: dict[str, str], level: str, code: int, status: str
) -> None:
    class Known(Flat):
        """The same."""

    component = Component(name="known", spec=Known, target=flat, summary="a constant", known_failures=known)
    with temporary(fake_plugins.module("other", components=[component])):
        found_code, found = check(capsys, "known", f"level={level}")
    assert (found_code, found["check_schedule_factors"]["status"]) == (code, status)
    if known == RIGHT:
        assert found["check_schedule_factors"]["reason"] == "rises above 1 on purpose"
    if known == WRONG:
        expected = "passes, but is declared to fail (thought to fail): delete its entry"
        assert found["check_schedule_factors"]["reason"] == expected


def test_a_known_failure_of_no_check_is_a_failure_with_the_nearest_name(capsys: Captured) -> None:
    class Typo(Flat):
        """The same."""

    known = {"check_schedule_factor": "why"}
    component = Component(name="typo", spec=Typo, target=flat, summary="a constant", known_failures=known)
    with temporary(fake_plugins.module("other", components=[component])):
        code, found = check(capsys, "typo")
    assert code == 1
    assert "did you mean 'check_schedule_factors'?" in found["example"]["reason"]


def test_an_unexpected_exception_is_shown_with_its_traceback(capsys: Captured) -> None:
    class Cracked(Flat):
        """The same."""

    def cracked(spec: Cracked, total_steps: int) -> Callable[[int], float]:
        raise ZeroDivisionError("no steps")

    component = Component(name="cracked", spec=Cracked, target=cracked, summary="raises")
    with temporary(fake_plugins.module("other", components=[component])):
        assert main(["check", "cracked"]) == 1
    out = capsys.readouterr().out
    assert 'raise ZeroDivisionError("no steps")' in out and "found     ZeroDivisionError: no steps" in out


def test_every_component_of_a_plugin_is_checked_and_one_check_can_be_selected(capsys: Captured) -> None:
    assert main(["check", "--plugin", "acme", "--json", "--only", "check_description"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["case"], r["check"]) for r in found["results"]] == [
        ("schedule/flat", "check_description"),
        ("optimizer/whole", "check_description"),
    ]
    assert found["counts"] == {"passed": 2}


def test_options_without_a_default_come_from_a_recipe_that_uses_the_component(capsys: Captured) -> None:
    assert main(["check", "tokenizer/bpe", "--only", "check_description", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["status"] == "passed" and result["options"].startswith("BytePairs(")


def test_options_without_a_default_that_no_recipe_gives_are_a_failure_that_says_what_to_write(capsys: Captured) -> None:
    component = Component(name="needs", spec=Needs, target=flat, summary="a constant")
    with temporary(fake_plugins.module("other", components=[component])):
        code, found = check(capsys, "needs")
        assert code == 1
        assert "in the shell: moekit check schedule/needs level=..." in found["example"]["reason"]
        assert check(capsys, "needs", "level=1")[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "check needs the name of a component, or --plugin NAME\n  list them: moekit ls"),
        (["flta"], "nothing is named 'flta'\n  did you mean 'flat'?"),
        (["schedule/flta"], "did you mean 'schedule/flat'?"),
        (["deepseek_v3-671b"], "'deepseek_v3-671b' is a recipe, and checks are of components"),
        (["--plugin", "acne"], "no plugin is named 'acne'\n  did you mean 'acme'?\n  list them: moekit plugins"),
        (["--plugin", "papers"], "plugin 'papers' offers no component, so there is nothing to check"),
        (["flat", "levle=1"], "did you mean 'level'?"),
        (["flat", "level=-1"], "level"),
        (["flat", "level={"], "not valid YAML"),
        (["flat", "whole", "level=1"], "options belong to one component, and 2 are named: schedule/flat, optimizer"),
        (["flat", "--only", "check_schedule_factor"], "did you mean 'check_schedule_factors'?"),
        (["flat", "--onyl", "x"], "did you mean '--only'?"),
    ],
)
def test_mistakes_name_the_nearest_valid_name(capsys: Captured, words: list[str], said: str) -> None:
    assert main(["check", *words]) == 2
    assert said in capsys.readouterr().err
