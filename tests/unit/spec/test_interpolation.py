"""Interpolation: each leaf by itself, what it may refer to, and which mistakes are reported."""

# ruff: noqa: E501 - whole messages are written here

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pages import cases
from spec_fakes import check_overrides

from moekit.errors import SpecError
from moekit.spec import load
from moekit.spec.interpolation import Resolver, escape, interpolated
from moekit.spec.places import Report
from moekit.spec.values import BROKEN

TREE = {
    "data": {"vocab": 256, "names": ["a", "b"], "twice": "${data.vocab}"},
    "model": {"vocab": "${data.twice}", "dim": 8, "text": "${.dim} of ${data.vocab}", "my-part": {"n": 1}},
    "seed": 3,
}


def resolve(text: object) -> tuple[object, list[str]]:
    report = Report()
    tree = {**TREE, "here": text}
    out = Resolver(tree, report, []).resolve(text, ("here",))
    return out, [p.what for p in report.problems()]


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("plain", "plain"),
        (3, 3),
        ("${data.vocab}", 256),
        ("${model.vocab}", 256),
        ("${ data.vocab }", 256),
        ("<${seed}>", "<3>"),
        ("${model.text}", "8 of 256"),
        ("${data.names}", ["a", "b"]),
        ("${data.names[1]}", "b"),
        ("${data}", {"vocab": 256, "names": ["a", "b"], "twice": 256}),
        ("${data.${model.my-part.key}}", BROKEN),
        ("${model.my-part.n}", 1),
        ("${oc.select:data.vocab}", 256),
        ("\\${seed}", "${seed}"),
        (["${seed}", {"k": "${seed}"}], [3, {"k": 3}]),
    ],
)
def test_an_interpolation_may_refer_to_any_value(text: object, out: object) -> None:
    assert resolve(text)[0] == out


def test_an_unreadable_interpolation_does_not_spoil_the_others() -> None:
    report = Report()
    tree = {"a": "${b", "b": "${c}", "c": 3}
    resolver = Resolver(tree, report, [])
    assert resolver.resolve("${c}", ("b",)) == 3
    assert resolver.resolve("${b", ("a",)) is BROKEN
    assert [p.what for p in report.problems()] == ["cannot read the interpolation '${b'"]


def test_every_broken_interpolation_is_reported() -> None:
    with pytest.raises(SpecError, match=r"^3 problems") as caught:
        load("small", ["model.vocab=${a.b}", "data.path=${c}", "optimizer.betas=['${d}', 0.5]"])
    assert [p.at for p in caught.value.problems] == ["model.vocab", "data.path", "optimizer.betas[0]"]


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        (["data.use=nothing"], "data.use"),  # model.vocab is ${data.vocab}
        (["data.vocab=???"], "data.vocab"),
        (["data.vocabb=3", "model.vocab=${data.vocabb}"], "data.vocabb"),
        (["model.moe.shared={use: wide}", "seed=${model.moe.shared.hidden}"], "model.moe.shared.hidden"),
    ],
)
def test_a_reference_to_a_broken_part_adds_no_problem(overrides: list[str], at: str) -> None:
    with pytest.raises(SpecError, match=f"  at {at} ") as caught:
        load("small", overrides)
    assert [p.at for p in caught.value.problems] == [at]


def test_an_environment_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_TEST_PATH", "/some/where")
    assert load("small", ["data.path=${oc.env:MOEKIT_TEST_PATH}"]).data.path == "/some/where"


@pytest.mark.parametrize("value", ["${a}", {"b": ["${a}"]}, ["x", "\\${a}"]])
def test_text_with_a_reference_is_recognised_at_any_depth(value: object) -> None:
    assert interpolated(value)
    assert not interpolated(["$", "{a}", {"b": 3}])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["\\", "$", "{", "}", "a", "${", "'", " "]), max_size=8).map("".join))
def test_escaped_text_means_itself(text: str) -> None:
    assert OmegaConf.create({"text": escape(text)}).text == text


@settings(max_examples=30, deadline=None)
@given(value=st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False)))
@pytest.mark.parametrize("reference", ["${data.vocab}", "${ data.vocab }"])
def test_a_reference_to_a_number_is_what_omegaconf_makes_of_it(reference: str, value: Any) -> None:
    tree = {"data": {"vocab": value}, "dim": reference}
    report = Report()
    resolved = Resolver(tree, report, []).resolve(reference, ("dim",))
    assert resolved == OmegaConf.create(tree).dim
    assert type(resolved) is type(value)
    assert not report


REPORTS = r"""
$ data=cases  # interpolation of what was replaced
cannot resolve '${data.vocab}': 'data.vocab' does not exist
  at model.vocab  in small.yaml, line 7
  did you mean 'model.vocab'?

$ 'model.vocab=${data.vocab}' 'data.vocab=${model.vocab}'  # interpolation in a circle
2 problems

cannot resolve '${data.vocab}': Recursive interpolation detected
  at model.vocab  in command line

cannot resolve '${model.vocab}': Recursive interpolation detected
  at data.vocab  in command line

$ 'model.vocab=${optimizer.lr}'  # interpolation of another type
vocab: 0.003 (from ${optimizer.lr}) is not an integer
  at model.vocab  in command line
  expected an integer >= 1

$ 'data.path=${oc.env:MOEKIT_UNSET_HERE}'  # interpolation of an unset variable
cannot resolve '${oc.env:MOEKIT_UNSET_HERE}': KeyError raised while resolving interpolation: "Environment variable 'MOEKIT_UNSET_HERE' not found"
  at data.path  in command line

$ 'data.path=${nothing:1}'  # interpolation without a resolver
cannot resolve '${nothing:1}': Unsupported interpolation type nothing
  at data.path  in command line
"""


@cases(REPORTS)
def test_a_broken_interpolation_is_reported_with_its_place(given: str, expected: str) -> None:
    check_overrides(given, expected)
