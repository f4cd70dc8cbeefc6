"""YAML in and out: what is a number, what is text, the place of each key, what is rejected, and how it is reported."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import cases, whole

from moekit.errors import SpecError
from moekit.spec import tree
from moekit.spec.tree import Place, Report, read, show, write

SCALARS = [
    ("1e-4", 1e-4),
    ("1.0e-4", 1e-4),
    ("1E+3", 1000.0),
    ("-.5", -0.5),
    ("1.", 1.0),
    ("1_000.5", 1000.5),
    (".inf", math.inf),
    ("-.inf", -math.inf),
    ("10", 10),
    ("-3", -3),
    ("1_000", 1000),
    ("0x1F", 31),
    ("0o17", 15),
    ("0b101", 5),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("yes", "yes"),
    ("off", "off"),
    ("010", "010"),
    ("12:30", "12:30"),
    ("00:12:00:00", "00:12:00:00"),
    ("2024-01-31", "2024-01-31"),
    ("1e", "1e"),
    ("e5", "e5"),
    (".", "."),
    ("1.2.3", "1.2.3"),
    ("0x", "0x"),
    ("'1'", "1"),
    ('"null"', "null"),
    ("!!str 5", "5"),
    ("!!float 5", 5.0),
    ("a b # c", "a b"),
]


@pytest.mark.parametrize("loader", ["C", "Python"])
@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_plain_scalars_are_read_as_yaml_1_2(
    text: str, value: object, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "Python":
        pure = type("Pure", (yaml.SafeLoader,), {"yaml_implicit_resolvers": tree._Loader.yaml_implicit_resolvers})
        monkeypatch.setattr(tree, "_Loader", pure)
    data = read(f"a: {text}", "f").data
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


def test_the_c_loader_is_used_where_there_is_one() -> None:
    assert issubclass(tree._Loader, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)


def test_nan_is_read_as_a_number() -> None:
    assert math.isnan(read("a: .nan", "f").data["a"])


def test_every_key_has_its_file_and_line() -> None:
    tree = read("# head\na:\n  b: [1, {c: 2}]\n  d:\n    - x\n    - y\n'<<': 1\n", "f.yaml")
    assert tree.data == {"a": {"b": [1, {"c": 2}], "d": ["x", "y"]}, "<<": 1}
    assert tree.places == {
        (): Place("f.yaml"),
        ("a",): Place("f.yaml", 2),
        ("a", "b"): Place("f.yaml", 3),
        ("a", "b", 0): Place("f.yaml", 3),
        ("a", "b", 1): Place("f.yaml", 3),
        ("a", "b", 1, "c"): Place("f.yaml", 3),
        ("a", "d"): Place("f.yaml", 4),
        ("a", "d", 0): Place("f.yaml", 5),
        ("a", "d", 1): Place("f.yaml", 6),
        ("<<",): Place("f.yaml", 7),
    }


def test_an_alias_is_a_copy() -> None:
    data = read("a: &x {k: [1]}\nb: *x\n", "f").data
    assert data == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert data["a"]["k"] is not data["b"]["k"]


def test_an_empty_document_is_none() -> None:
    assert read("# only a remark\n", "f").data is None


def test_writing_keeps_the_order_and_puts_lists_in_a_line() -> None:
    assert write({"b": {"use": "x", "rate": 1e-4}, "a": [1, "1e-4", None], "c": "yes", "d": {}}) == (
        "b:\n  use: x\n  rate: 0.0001\na: [1, '1e-4', null]\nc: 'yes'\nd: {}\n"
    )


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN)
def test_what_is_written_reads_back(plain: Any) -> None:
    assert read(write({"a": plain}), "f").data == {"a": plain}


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"[-+.0-9eE_xob:]{1,8}", fullmatch=True))
def test_text_that_looks_like_a_number_stays_text(text: str) -> None:
    assert read(write({"a": text}), "f").data == {"a": text}


REPORTS = r"""
$ "model:\n  use: tower\n  width: [1, 2\ndata: lines\n"  # syntax
not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'
  in mine.yaml, line 4

$ "model:\n\tuse: tower\n"  # tab
not valid YAML: a tab, where YAML is indented by spaces
  in mine.yaml, line 2

$ "model: {use: tower, width: 1}\n---\nmodel: {use: tower, width: 1}\n"  # two documents
not valid YAML: expected a single document in the stream, but found another document
  in mine.yaml, line 2

$ "model: \u0001\n"  # control character
not valid YAML: unacceptable character #x0001: control characters are not allowed in "<unicode string>", position 7
  in mine.yaml

$ "model: {use: tower, width: 1}\ndata: lines\nmodel: {use: tower, width: 2}\n"  # twice
key 'model' occurs twice, first in line 1
  at model  in mine.yaml, line 3

$ "model:\n  use: tower\n  width: 1\n  2: 3\n"  # key number
key 2 is not text
  at model  in mine.yaml, line 4
  expected a name, in quotes if need be

$ "model: {use: tower, [a]: 1}\n"  # key list
a key is not text
  at model  in mine.yaml, line 1
  expected a name, in quotes if need be

$ "model: !!python/object:os.system {}\n"  # tag
tag '!!python/object:os.system' is not supported
  at model  in mine.yaml, line 1
  expected plain values

$ "model: {use: tower, width: !mine 3}\n"  # tag scalar
tag '!mine' is not supported
  at model.width  in mine.yaml, line 1
  expected plain values

$ "model: {use: tower, width: !!set [3]}\n"  # tag list
tag '!!set' is not supported
  at model.width  in mine.yaml, line 1
  expected plain values

$ "model: {use: tower, width: !!int x}\n"  # bad int
'x' is not a YAML int
  at model.width  in mine.yaml, line 1

$ "model: &m {use: tower, moe: *m}\n"  # recursive
nested too deeply, or an alias that holds itself
  in mine.yaml
  expected at most 50 levels

$ "model: &m {use: tower, width: 1}\ndata:\n  <<: *m\n"  # merge key
'<<' is not supported
  at data  in mine.yaml, line 3
  expected 'extends' to inherit a file
"""


@cases(REPORTS)
def test_what_a_spec_may_not_hold_is_rejected_with_its_line(given: str, expected: str) -> None:
    with pytest.raises(SpecError, match=whole(expected)):
        read(ast.literal_eval(given), "mine.yaml")


def test_a_path_is_shown_with_dots_and_indices() -> None:
    assert show(("model", "moe", "layers", 2, "use")) == "model.moe.layers[2].use"
    assert show(()) == ""


def test_a_problem_has_the_place_of_its_nearest_written_parent_and_is_in_order_of_lines() -> None:
    report = Report({("a",): Place("one.yaml", 7), ("b",): Place("two.yaml", 1), ("a", "x"): Place("one.yaml", 3)})
    for path in (("a", "y", 0), ("b", "z"), ("a", "x"), ("c",)):
        report.add(path, "wrong")
    found = [(problem.at, problem.source) for problem in report.problems()]
    assert found == [
        ("a.x", "one.yaml, line 3"),
        ("a.y[0]", "one.yaml, line 7"),
        ("b.z", "two.yaml, line 1"),
        ("c", ""),
    ]
