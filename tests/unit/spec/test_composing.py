"""Values against types: what converts, what does not, whole reports, and types in words; conflicts of a whole spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import cases
from spec_fakes import check_overrides

from moekit.errors import PluginError
from moekit.spec.fields import FieldInfo
from moekit.spec.loading import _NODES, BROKEN, Values, describe, scalar
from moekit.spec.tree import Report

INFO = FieldInfo("option", "an option")


def read(value: object, hint: object, info: FieldInfo = INFO) -> tuple[object, list[str]]:
    report = Report()
    out = Values(report).read(value, info._replace(type=hint), ("x",))
    return out, [p.what for p in report.problems()]


@pytest.mark.parametrize(
    ("value", "hint", "out"),
    [
        (3, int, 3),
        ("3", int, 3),
        (3.0, int, 3),
        (-1e3, int, -1000),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        (True, bool, True),
        ("yes", bool, True),
        ("false", bool, False),
        ("a", str, "a"),
        (3, str, "3"),
        (None, int | None, None),
        (3, int | None, 3),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2], 2),
        (2, Literal["auto"] | int, 2),
        ("auto", Literal["auto"] | int, "auto"),
        ("7", Literal["auto"] | int, 7),
        (2, float | int, 2),
        ("2", float | int, 2.0),
        ([1, "2"], list[int], [1, 2]),
        ((1, 2), list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], tuple[int, float], (1, 2.0)),
        ([[1], []], list[list[int]], [[1], []]),
        ([1, "a"], list, [1, "a"]),
        ([1, 2], list[int] | int, [1, 2]),
        ({"a": "1"}, dict[str, int], {"a": 1}),
        ({"a": None, "b": 1}, Mapping[str, int], {"b": 1}),
        ({"a": [1, {"b": "c"}]}, dict[str, Any], {"a": [1, {"b": "c"}]}),
        ([1, None], Any, [1, None]),
        ({"a": 1}, dict, {"a": 1}),
    ],
)
def test_values_convert_where_nothing_is_lost(value: object, hint: object, out: object) -> None:
    got, problems = read(value, hint)
    assert (got, type(got), problems) == (out, type(out), [])


@pytest.mark.parametrize(
    ("value", "hint", "problem"),
    [
        (2.5, int, "x: 2.5 is not an integer"),
        (math.inf, int, "x: inf is not an integer"),
        (math.inf, float, "x: inf is not finite"),
        (-math.inf, float | None, "x: -inf is not finite"),
        ("inf", float, "x: inf is not finite"),
        ([0.5, math.inf], list[float], "x[1]: inf is not finite"),
        ({"a": [1, math.inf], "b": math.nan}, dict[str, Any], "a[1]: inf is not finite; b: nan is not finite"),
        (2**64, int, f"x: {2**64} is out of range"),
        pytest.param(10**5000, int, "x: an integer of thousands of digits is out of range", id="5000 digits"),
        ("???", int, "x: the recipe leaves this open ('???')"),
        ({"a": ["???"]}, dict[str, Any], "a[0]: the recipe leaves this open ('???')"),
        ({1: 2}, dict[str, Any], "x: a mapping has key 1, which is not text"),
        (True, int, "x: true is not an integer"),
        (False, float, "x: false is not a number"),
        (10**400, float, f"x: {'1' + '0' * 56}... is not a number"),
        (math.nan, float, "x: nan is not a number"),
        ("nan", float, "x: 'nan' is not a number"),
        (0, bool, "x: 0 is not true or false"),
        (None, int, "x: null is not an integer"),
        ([1], int, "x: a list is not an integer"),
        ("x", int | None, "x: 'x' is not an integer"),
        (1.5, str, "x: 1.5 is not text"),
        (True, str, "x: true is not text"),
        (3, Literal[1, 2], "x: 3 is none of its choices"),
        (True, Literal[1, 2], "x: true is none of its choices"),
        ("x", Literal["auto"] | int, "x: 'x' is not one of auto or an integer"),
        (1, list[int], "x: 1 is not a list"),
        ("ab", list[str], "x: 'ab' is not a list"),
        ([1, "a", 2.5], list[int], "x[1]: 'a' is not an integer; x[2]: 2.5 is not an integer"),
        ([1, 2, 3], tuple[int, int], "x: a list of 3"),
        ({"a": "b"}, dict[str, int], "a: 'b' is not an integer"),
        ([1], dict[str, int], "x: a list is not a mapping"),
        ({"a": {1, 2}}, dict[str, Any], "a: an object of type set is not a plain value"),
    ],
)
def test_values_that_do_not_fit_are_reported(value: object, hint: object, problem: str) -> None:
    got, problems = read(value, hint)
    assert got is BROKEN
    assert "; ".join(problems) == problem


def test_an_option_may_mean_infinity() -> None:
    info = FieldInfo("option", "a bound", gt=0, finite=False)
    assert read(math.inf, float, info) == (math.inf, [])
    assert read(-math.inf, float, info) == (BROKEN, ["x: -inf is out of range"])
    assert read(math.nan, float, info) == (BROKEN, ["x: nan is not a number"])


def test_ranges_hold_for_every_item() -> None:
    info = FieldInfo("option", "shares", ge=0, lt=1)
    assert read([0, 0.5], list[float], info) == ([0.0, 0.5], [])
    out, problems = read([0.5, 1, -1], list[float], info)
    assert out is BROKEN
    assert problems == ["x[1]: 1.0 is out of range", "x[2]: -1.0 is out of range"]


def test_a_number_for_a_text_option_must_be_quoted() -> None:
    report = Report()
    Values(report).read(2412.1, INFO._replace(type=str), ("arxiv",))
    assert report.problems()[0].expected == "text, in quotes"


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (bool, "true or false"),
        (list[str], "a list of text"),
        (list, "a list"),
        (tuple[float, ...], "a list of numbers"),
        (list[list[int]], "a list of values"),
        (dict[str, float], "a mapping to numbers"),
        (dict, "a mapping"),
        (Any, "a plain value"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (Literal["auto"] | int, "one of auto or an integer"),
    ],
)
def test_types_are_described_in_words(hint: object, words: str) -> None:
    assert describe(hint) == words


def test_a_type_that_no_option_can_have_is_a_plugin_error() -> None:
    with pytest.raises(PluginError, match=r"^an option cannot be of type <class 'complex'>: int, float, bool, str"):
        scalar(1, complex)


@settings(max_examples=50, deadline=None)
@given(
    value=st.one_of(
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.floats(allow_nan=False),
        st.text().filter(lambda text: "${" not in text),
    )
)
def test_a_value_of_the_right_type_is_what_omegaconf_makes_of_it(value: Any) -> None:
    converted = _NODES[type(value)].validate_and_convert(value)
    assert scalar(value, type(value)) == converted
    assert type(scalar(value, type(value))) is type(converted)


REPORTS = r"""
$ model.moe.router.top_k=two  # not an integer
top_k: 'two' is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8

$ optimizer.lr=fast  # not a number
lr: 'fast' is not a number
  at optimizer.lr  in command line
  expected a number > 0

$ 'summary=[a]'  # a list is not text
summary: a list is not text
  at summary  in command line
  expected text

$ 'model.note={a: 1}'  # null or text
note: a mapping is not text
  at model.note  in command line
  expected text or null

$ optimizer.betas=0.9  # not a list
betas: 0.9 is not a list
  at optimizer.betas  in command line
  expected a list of numbers >= 0 and < 1

$ optimizer.betas.0=0.8  # an index into a list
betas: a mapping is not a list
  at optimizer.betas  in command line
  expected a list of numbers >= 0 and < 1

$ requires=fast  # not a mapping
requires: 'fast' is not a mapping
  at requires  in command line
  expected a mapping to text

$ model.moe.router.top_k=9  # out of range
top_k: 9 is out of range
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8

$ 'optimizer.betas=[0.9, 1.5]'  # an item out of range
betas[1]: 1.5 is out of range
  at optimizer.betas[1]  in command line
  expected a list of numbers >= 0 and < 1

$ schema=new  # schema is not a number
schema: 'new' is not an integer
  at schema  in command line
  expected an integer >= 1 and <= 1
"""


@cases(REPORTS)
def test_a_value_that_does_not_fit_is_reported_with_its_place(given: str, expected: str) -> None:
    check_overrides(given, expected)


CONFLICTS = r"""
$ model.moe.router.top_k=1 model.moe.router.renormalize=true model.moe.router.score=sigmoid  # conflict of options
2 problems

top_k=1 with renormalize=true has no gradient
  at model.moe.router  in command line

top_k=1 with score=sigmoid is not wanted here
  at model.moe.router  in command line
"""


@cases(CONFLICTS)
def test_every_conflict_between_options_is_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)
