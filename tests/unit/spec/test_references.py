"""Interpolation: each value by itself, what it may refer to, and which mistakes are reported."""

# ruff: noqa: E501 - whole messages are written here

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import spec_fakes as fakes
from fake_plugins import module
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pages import cases, whole
from spec_fakes import check_overrides

from moekit.errors import SpecError
from moekit.registry import temporary
from moekit.spec import load
from moekit.spec.loading import BROKEN
from moekit.spec.references import References, escape, register_resolver
from moekit.spec.tree import Report, is_reference

Write = Callable[[str, str], str]

TREE: dict[str, Any] = {
    "data": {"vocab": 256, "names": ["a", "b"], "twice": "${data.vocab}"},
    "model": {"vocab": "${data.twice}", "dim": 8, "text": "${.dim} of ${data.vocab}", "my-part": {"n": 1}},
    "seed": 3,
}


def resolve(written: object) -> tuple[object, list[str]]:
    report = Report()
    tree = OmegaConf.create({**TREE, "here": written})
    out = References(tree, report).value(tree, "here", written, ("here",))
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
        ("${oc.create:'{x: [1, 2]}'}", {"x": [1, 2]}),
        ("${oc.decode:'[1, {a: 2}]'}", [1, {"a": 2}]),
        ("\\${seed}", "${seed}"),
        ("???", "???"),
        (["${seed}", {"k": "${seed}"}, "???"], [3, {"k": 3}, "???"]),
    ],
)
def test_an_interpolation_may_refer_to_any_value(text: object, out: object) -> None:
    assert resolve(text)[0] == out


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("${data.vocabs}", "cannot resolve '${data.vocabs}': 'data.vocabs' does not exist"),
        ("${.nothing}", "cannot resolve '${.nothing}': 'nothing' does not exist"),
        ("${data.names[7]}", "cannot resolve '${data.names[7]}': 'data.names[7]' does not exist"),
        ("a ${nothing} b", "cannot resolve 'a ${nothing} b': 'nothing' does not exist"),
        (["${nothing}", 3], "cannot resolve '${nothing}': 'nothing' does not exist"),
        ("${here}", "cannot resolve '${here}': Recursive interpolation detected"),
    ],
)
def test_what_does_not_exist_is_reported(text: object, what: str) -> None:
    assert resolve(text) == (BROKEN, [what])


@pytest.mark.parametrize("written", [["${here}"], {"a": {"b": "${here}"}}, ["${here}", "${here}"]])
def test_a_reference_to_what_holds_it_is_reported(written: object) -> None:
    out, problems = resolve(written)
    assert out is BROKEN
    assert set(problems) == {"cannot resolve '${here}': Interpolation to parent node detected"}


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"a0": ["${trainer.callbacks.c.a1}"] * 11, "a1": [0] * 1000}, "references repeat more than 10,000 values"),
        (
            {f"a{i}": [f"${{trainer.callbacks.c.a{i + 1}}}"] * 9 for i in range(12)},
            "references refer to others more than 2,000 times",
        ),
        (
            {f"a{i}": f"${{trainer.callbacks.c.a{i + 1}}}" * 2 for i in range(60)},
            "references refer to others more than 2,000 times",
        ),
        (
            {f"a{i}": f"${{trainer.callbacks.c.a{i + 1}}}" for i in range(3000)},
            "references refer to others more than 2,000 times",
        ),
    ],
    ids=["a list", "lists", "texts", "a chain"],
)
def test_references_that_multiply_are_rejected(tree: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError, match=rf"^{what}.*\n  at trainer\.callbacks\.c\.a"):
        load({"extends": "small", "trainer": {"callbacks": {"c": {"class": "a.B", **tree}}}})


def test_every_broken_interpolation_is_reported() -> None:
    with pytest.raises(SpecError, match=r"^4 problems") as caught:
        load("small", ["model.vocab=${a.b}", "data.path=${c}", "optimizer.betas=['${d}', 0.5]", "seed=${"])
    assert [p.at for p in caught.value.problems] == ["seed", "model.vocab", "data.path", "optimizer.betas[0]"]


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        (["data.use=nothing"], "data.use"),  # model.vocab is ${data.vocab}
        (["data.vocab=???"], "data.vocab"),
        (["data=???"], "data"),
        (["data.vocab=${"], "data.vocab"),
        (["data.vocab=x"], "data.vocab"),
        (["data.vocab=-1"], "data.vocab"),
        (["data.vocab=${nothing}"], "data.vocab"),
        (["data.vocabb=3", "model.vocab=${data.vocabb}"], "data.vocabb"),
        (["data.path=[1]", "summary=<${data.path}>"], "data.path"),
        (["model.moe.shared={use: wide}", "seed=${model.moe.shared.hidden}"], "model.moe.shared.hidden"),
        (["model.moe.experts.hidden=x", "model.moe.shared=${.experts}"], "model.moe.experts.hidden"),
        (["model.moe.experts.hidden=null", "model.moe.shared=${.experts}"], "model.moe.experts.hidden"),
        (["model.moe.experts.use=nothing", "model.moe.shared=${.experts}"], "model.moe.experts.use"),
        (["model.moe.experts.hidden=x", "model.moe.shared=${.experts}", "model.ffn=${.moe.shared}"], "model.moe.experts.hidden"),
    ],
)  # fmt: skip
def test_a_reference_to_a_broken_part_adds_no_problem(overrides: list[str], at: str) -> None:
    with pytest.raises(SpecError, match=f"  at {at} ") as caught:
        load("small", overrides)
    assert [p.at for p in caught.value.problems] == [at]


def test_a_value_that_is_wrong_only_where_it_is_referred_to_is_reported_there() -> None:
    with pytest.raises(SpecError, match=whole(
        "top_k: 0 (from ${seed}) is out of range\n"
        "  at model.moe.router.top_k  in command line\n"
        "  expected an integer >= 1 and <= 8"
    )):  # fmt: skip
        load("small", ["seed=0", "model.moe.router.top_k=${seed}"])


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["model.moe.shared=${.experts}"], "model.moe.shared", fakes.Wide(count=4, hidden=16)),
        (["model.moe.shared=${model.moe.experts}"], "model.moe.shared", fakes.Wide(count=4, hidden=16)),
        (["model.moe.shared=${.experts}", "model.moe.shared.count=1"], "model.moe.shared", fakes.Wide(hidden=16)),
        (["model.moe.shared=${.experts}", "model.moe.experts.hidden=3"], "model.moe.shared.hidden", 3),
        (["model.moe.shared=${.experts}", "model.moe.shared={use: flat}"], "model.moe.shared", fakes.Flat()),
        (["model.moe.shared=${.experts}", "model.ffn=${.moe.shared}", "model.moe.shared.count=1"], "model.ffn.count", 1),
        (["model.moe.shared={use: '${..experts.use}', hidden: 2}"], "model.moe.shared", fakes.Wide(hidden=2)),
        (["model.note=walk", "model.moe.dispatcher=${model.note}"], "model.moe.dispatcher", fakes.Walk()),
        (["model.ffn=${.moe.shared}"], "model.ffn", None),
        (["model.moe.balancers.again=${.bias}", "model.moe.balancers.bias.rate=2"], "model.moe.balancers.again.rate", 2.0),
        (["model.head=${model.moe.shared}"], "model.head", None),
        (["trainer.callbacks.c={class: a.B, a: {depth: 3}}", "model.head=${trainer.callbacks.c.a}", "trainer.callbacks.c.a=null"], "model.head", None),
        (["model.head.depth=${model.moe.router.top_k}"], "model.head.depth", 2),
        (["model.head={}", "seed=${model.head.depth}"], "seed", 1),
        (["seed=${checkpoints.keep}"], "seed", 2),
        (["trainer.max_steps=${oc.decode:'12'}"], "trainer.max_steps", 12),
        (["optimizer.betas=${oc.create:'[0.1, 0.2]'}"], "optimizer.betas", [0.1, 0.2]),
    ],
)  # fmt: skip
def test_a_component_or_its_name_may_be_a_reference(overrides: list[str], path: str, value: object) -> None:
    found: object = load("small", overrides)
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_a_mapping_over_a_reference_is_a_copy(write: Write) -> None:
    write("base.yaml", "extends: small\nmodel: {moe: {shared: '${.experts}'}}\n")
    write("mine.yaml", "extends: base.yaml\nmodel:\n  moe:\n    shared: {count: 2}\n    experts: {hidden: 5}\n")
    moe = load("mine.yaml", ["model.moe.shared.hidden=6"]).model.moe
    assert (moe.shared, moe.experts) == (fakes.Wide(count=2, hidden=6), fakes.Wide(count=4, hidden=5))
    with pytest.raises(SpecError, match=r"  at model\.moe\.shared\.count  in mine\.yaml, line 4"):
        write("mine.yaml", "extends: base.yaml\nmodel:\n  moe:\n    shared: {count: x}\n")
        load("mine.yaml")


@pytest.mark.parametrize(
    ("overrides", "at"),
    [
        (["model.moe=${model}"], "model.moe"),
        (["model.moe.shared=${.experts}", "model.moe.experts=${.shared}"], "model.moe.shared"),
        (["trainer.callbacks.c={class: a.B, a: ['${trainer}']}"], "trainer.callbacks.c.a[0]"),
    ],
)
def test_a_part_that_refers_to_itself_ends(overrides: list[str], at: str) -> None:
    with pytest.raises(SpecError, match=r"cannot resolve .*(parent node|Recursive interpolation) detected") as caught:
        load("small", overrides)
    assert at in [p.at for p in caught.value.problems]


def test_an_environment_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_TEST_PATH", "/some/where")
    monkeypatch.setenv("MOEKIT_TEST_USE", "walk")
    recipe = load("small", ["data.path=${oc.env:MOEKIT_TEST_PATH}", "model.moe.dispatcher=${oc.env:MOEKIT_TEST_USE}"])
    assert (recipe.data.path, recipe.model.moe.dispatcher) == ("/some/where", fakes.Walk())


def test_text_with_a_reference_is_recognised() -> None:
    assert is_reference("${a}") and is_reference("a \\${b}")
    assert not is_reference("$ {a}") and not is_reference(["${a}"]) and not is_reference(3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["\\", "$", "{", "}", "a", "${", "'", " "]), max_size=8).map("".join))
def test_escaped_text_means_itself(text: str) -> None:
    assert OmegaConf.create({"text": escape(text)}).text == text


@settings(max_examples=30, deadline=None)
@given(value=st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False)))
def test_a_reference_to_a_number_keeps_its_type(value: Any) -> None:
    tree = OmegaConf.create({"data": {"vocab": value}, "dim": "${data.vocab}"})
    resolved = References(tree, Report()).value(tree, "dim", "${data.vocab}", ("dim",))
    assert (resolved, type(resolved)) == (value, type(value))


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

$ 'model.moe.shared=${model.moe.expert}'  # a component that does not exist
cannot resolve '${model.moe.expert}': 'model.moe.expert' does not exist
  at model.moe.shared  in command line
  did you mean 'model.moe.experts'?

$ 'model.moe.shared=${nothing}' model.moe.shared.count=2  # a mapping over what does not exist
cannot resolve '${nothing}': 'nothing' does not exist
  at model.moe.shared  in command line

$ 'model.moe.router.use=${seed}'  # a number where a name belongs
use: 0 is not a name
  at model.moe.router.use  in command line
  expected the name of a router
  list them: moekit ls routers

$ 'model.moe.dispatcher=${model.moe.router}'  # a component of another kind
unknown dispatcher 'pick' (installed: pour, walk)
  at model.moe.dispatcher.use  in command line
  list them: moekit ls dispatchers
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ 'seed=${model'  # interpolation without an end
cannot read the interpolation '${model'
  at seed  in command line
  expected '${path.to.option}', or '\${' for these characters themselves
"""


@cases(REPORTS)
def test_a_broken_interpolation_is_reported_with_its_place(given: str, expected: str) -> None:
    check_overrides(given, expected)


def test_a_resolver_may_leave_a_value_open() -> None:
    register_resolver("odd", lambda: "???")
    try:
        with pytest.raises(SpecError, match=r"(left|leaves this) open \('\?\?\?'\)\n  at trainer  in"):
            load("small", ["trainer=${odd:}"])
    finally:
        OmegaConf.clear_resolver("odd")


def test_an_exception_of_a_resolver_is_reported_with_its_line(write: Write) -> None:
    def boom() -> None:
        raise ZeroDivisionError("division by zero")

    write("mine.yaml", "extends: small\ndata:\n  path: ${boom:}\nmodel:\n  moe: {shared: '${boom:}'}\n")
    register_resolver("boom", boom)
    try:
        with pytest.raises(SpecError, match=r"^2 problems") as caught:
            load("mine.yaml")
    finally:
        OmegaConf.clear_resolver("boom")
    said = "cannot resolve '${boom:}': ZeroDivisionError raised while resolving interpolation: division by zero"
    assert {(p.what, p.at, p.source) for p in caught.value.problems} == {
        (said, "data.path", "mine.yaml, line 3"),
        (said, "model.moe.shared", "mine.yaml, line 5"),
    }


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ({1: 2}, "requires: a mapping (from ${odd:}) has key 1, which is not text"),
        (object(), "requires: an object of type object (from ${odd:}) is not a mapping"),
    ],
)
def test_what_a_resolver_returns_is_checked(made: object, what: str) -> None:
    register_resolver("odd", lambda: made)
    try:
        with pytest.raises(SpecError, match=rf"^{re.escape(what)}.*\n  at requires  in command line"):
            load("small", ["requires=${odd:}"])
    finally:
        OmegaConf.clear_resolver("odd")


def square(number: int) -> int:
    return number * number


def failing(number: int) -> int:
    raise ZeroDivisionError(f"cannot divide {number}")


def test_plugins_offer_resolvers_and_are_named_where_one_fails() -> None:
    offers = {"acme.square": "test_references:square", "acme.failing": "test_references:failing"}
    with temporary(module("acme_math", resolvers=offers)):
        assert load("small", ["model.width=${acme.square:3}"]).model.width == 9  # type: ignore[attr-defined]
        message = r"resolver 'acme\.failing' of plugin 'acme_math': ZeroDivisionError: cannot divide 2"
        with pytest.raises(SpecError, match=message):
            load("small", ["model.width=${acme.failing:2}"])
