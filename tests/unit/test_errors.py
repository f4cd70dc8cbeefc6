"""The texts of errors, which name the next command."""

from __future__ import annotations

import pytest

from moekit import errors
from moekit.errors import MoekitError, Problem, SpecError, UnknownName, nearest

FULL = Problem(
    what="unknown router 'top_k' (installed: dense, topk)",
    at="model.moe.router.use",
    source="mine.yaml, line 14",
    expected="the name of a router",
    nearest="topk",
    list_with="moekit ls routers",
    notes=("plugin 'acme' failed to load (no MOEKIT_API); see: moekit plugins",),
)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            FULL,
            "unknown router 'top_k' (installed: dense, topk)\n"
            "  at model.moe.router.use  in mine.yaml, line 14\n"
            "  expected the name of a router\n"
            "  did you mean 'topk'?\n"
            "  list them: moekit ls routers\n"
            "  note: plugin 'acme' failed to load (no MOEKIT_API); see: moekit plugins",
        ),
        (Problem(what="it is empty"), "it is empty"),
        (Problem(what="wrong", at="model.dim"), "wrong\n  at model.dim"),
        (Problem(what="wrong", source="command line"), "wrong\n  in command line"),
        (Problem(what="wrong", expected="int >= 1"), "wrong\n  expected int >= 1"),
        (Problem(what="wrong", notes=("first", "second")), "wrong\n  note: first\n  note: second"),
    ],
)
def test_a_problem_is_printed_with_the_parts_that_it_has(problem: Problem, text: str) -> None:
    assert str(problem) == text
    assert str(SpecError([problem])) == text


def test_several_problems_are_counted_and_printed_in_order() -> None:
    error = SpecError(Problem(what=f"mistake {n}", at=f"a.b{n}") for n in (1, 2))
    assert str(error) == "2 problems\n\nmistake 1\n  at a.b1\n\nmistake 2\n  at a.b2"
    assert [p.at for p in error.problems] == ["a.b1", "a.b2"]


def test_unknown_name_carries_its_parts() -> None:
    error = UnknownName(FULL)
    assert error.problem is FULL
    assert str(error) == str(FULL)


@pytest.mark.parametrize(
    "name", [n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, Exception)]
)
def test_every_error_is_a_value_error_of_moekit(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, MoekitError)
    assert issubclass(error, ValueError)
    assert error.__doc__


@pytest.mark.parametrize(
    ("name", "choices", "found"),
    [
        ("top_k", ["dense", "topk"], "topk"),
        ("zzz", ["dense", "topk"], ""),
        ("topk", [], ""),
    ],
)
def test_the_nearest_name_is_similar_or_empty(name: str, choices: list[str], found: str) -> None:
    assert nearest(name, choices) == found
