"""What differs between two specs, and how each difference is printed."""

from __future__ import annotations

import pytest
from spec_fakes import Blend, Fair, Head, Pick

from moekit.spec import load
from moekit.spec.dumping import text_of
from moekit.spec.recipe import Paper
from moekit_report.diffing import Change, diff


def changes(*overrides: str) -> list[str]:
    return [str(change) for change in diff(load("small"), load("small", overrides))]


def test_equal_specs_do_not_differ() -> None:
    assert diff(load("small"), load("small")) == []
    assert changes("model.head=null", "model.note=plain") == []


def test_names_and_summaries_are_not_compared() -> None:
    assert changes("name=other", "summary=other", "requires={base: '>=1'}") == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.moe.router.top_k=4", "model.moe.router.top_k: 2 -> 4"),
        ("model.moe.shared=flat", "model.moe.shared: none -> flat()"),
        ("model.moe.experts={use: flat, count: 4}", "model.moe.experts: wide(count=4, hidden=16) -> flat(count=4)"),
        ("model.moe.balancers.bias=null", "model.moe.balancers.bias: nudge(rate=0.01) -> none"),
        ("model.moe.balancers.load=fair", "model.moe.balancers.load: none -> fair()"),
        ("model.head={}", "model.head: none -> (depth=1, tied=true)"),
        ("model.head.depth=3", "model.head: none -> (depth=3)"),
        ("optimizer.betas=[0.5, 0.9]", "optimizer.betas: [0.9, 0.95] -> [0.5, 0.9]"),
        ("trainer.max_steps=20", "trainer.max_steps: 10 -> 20"),
        ("trainer.precision=32", "trainer.precision: none -> 32"),
        ("trainer.max_time={hours: 1}", "trainer.max_time.hours: none -> 1"),
        ("model.note=null", "model.note: plain -> none"),
        ("paper={title: A Paper, year: 1991, authors: Some}", "paper: none -> A Paper (1991)"),
    ],
)
def test_one_option_changed_is_one_line(override: str, line: str) -> None:
    assert changes(override) == [line]


def test_several_options_of_one_component_share_a_line() -> None:
    assert changes("model.moe.router.top_k=3", "model.moe.router.renormalize=true", "optimizer.betas=[0.5, 0.9]") == [
        "model.moe.router: pick(top_k=2, renormalize=false) -> pick(top_k=3, renormalize=true)",
        "optimizer.betas: [0.9, 0.95] -> [0.5, 0.9]",
    ]
    a, b = (
        load("small", [f"model.head={{depth: {depth}, tied: {tied}}}"]) for depth, tied in ((1, "true"), (2, "false"))
    )
    assert [str(change) for change in diff(a, b)] == ["model.head: (depth=1, tied=true) -> (depth=2, tied=false)"]


def test_a_component_exchanged_for_another_is_one_change() -> None:
    overrides = ["model.moe.router.use=blend", "model.moe.dispatcher=pour", "model.moe.balancers=null"]
    changes = diff(load("small"), load("small", overrides))
    assert changes[0] == Change("model.moe.router", Pick(top_k=2), Blend())
    assert [str(change) for change in changes] == [
        "model.moe.router: pick(top_k=2) -> blend()",
        "model.moe.dispatcher: walk() -> pour()",
        "model.moe.balancers.bias: nudge(rate=0.01) -> none",
    ]


def test_a_group_that_holds_components_is_compared_part_by_part() -> None:
    assert changes("model.moe=null") == [
        "model.moe.router: pick(top_k=2) -> none",
        "model.moe.experts: wide(count=4, hidden=16) -> none",
        "model.moe.dispatcher: walk() -> none",
        "model.moe.balancers.bias: nudge(rate=0.01) -> none",
    ]
    back = diff(load("small", ["model.moe=null"]), load("small"))
    assert [(c.path, c.before is None) for c in back] == [
        ("model.moe.router", True),
        ("model.moe.experts", True),
        ("model.moe.dispatcher", True),
        ("model.moe.balancers.bias", True),
    ]


def test_parts_that_both_models_have_are_compared_further() -> None:
    a = load("small", ["model.head={depth: 2}"])
    b = load({"extends": "small", "data": "cases", "objective": None, "model": {"use": "stack", "inputs": 3}})
    assert [str(change) for change in diff(a, b)] == [
        "model: tower(width=8, head=(...)) -> stack(inputs=3)",
        "model.moe.router: pick(top_k=2) -> none",
        "model.moe.experts: wide(count=4, hidden=16) -> none",
        "model.moe.dispatcher: walk() -> none",
        "model.moe.balancers.bias: nudge(rate=0.01) -> none",
        "objective: next() -> none",
        "data: lines(seq=32) -> cases()",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (1e-4, "0.0001"),
        ("a b", "a b"),
        ([1, [2, None]], "[1, [2, none]]"),
        ({"a": Fair(weight=0.5), "b": Fair()}, "{a: fair(...), b: fair()}"),
        (Head(), "(depth=1, tied=true)"),
        (Paper(), "untitled"),
        (Pick(top_k=2, renormalize=True), "pick(top_k=2, renormalize=true)"),
    ],
)
def test_values_are_printed_as_in_yaml(value: object, text: str) -> None:
    assert text_of(value) == text
