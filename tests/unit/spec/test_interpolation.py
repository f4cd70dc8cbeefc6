"""Interpolation: each leaf by itself, what it may refer to, and when silence is right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

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
def test_what_it_may_refer_to(text: object, out: object) -> None:
    assert resolve(text)[0] == out


def test_one_that_cannot_be_read_does_not_spoil_the_others() -> None:
    report = Report()
    tree = {"a": "${b", "b": "${c}", "c": 3}
    resolver = Resolver(tree, report, [])
    assert resolver.resolve("${c}", ("b",)) == 3
    assert resolver.resolve("${b", ("a",)) is BROKEN
    assert [p.what for p in report.problems()] == ["cannot read the interpolation '${b'"]


def test_every_broken_one_is_told() -> None:
    with pytest.raises(SpecError) as caught:
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
def test_what_refers_to_a_broken_part_is_not_told_again(overrides: list[str], at: str) -> None:
    with pytest.raises(SpecError) as caught:
        load("small", overrides)
    assert [p.at for p in caught.value.problems] == [at]


def test_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_TEST_PATH", "/some/where")
    assert load("small", ["data.path=${oc.env:MOEKIT_TEST_PATH}"]).data.path == "/some/where"


@pytest.mark.parametrize("value", ["${a}", {"b": ["${a}"]}, ["x", "\\${a}"]])
def test_interpolated(value: object) -> None:
    assert interpolated(value)
    assert not interpolated(["$", "{a}", {"b": 3}])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["\\", "$", "{", "}", "a", "${", "'", " "]), max_size=8).map("".join))
def test_escaped_text_means_itself(text: str) -> None:
    assert OmegaConf.create({"text": escape(text)}).text == text
