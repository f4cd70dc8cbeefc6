"""How one tree is merged over another, and the place of each value in the result."""

from __future__ import annotations

import pytest

from moekit.spec.merging import merge
from moekit.spec.places import Place, Tree
from moekit.spec.yaml_text import read


def merged(base: str, over: str) -> object:
    return merge(read(base, "base"), read(over, "over")).data


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ("{a: 1, b: {c: 2}}", "{b: {d: 3}}", {"a": 1, "b": {"c": 2, "d": 3}}),
        ("{a: [1, 2, 3]}", "{a: [4]}", {"a": [4]}),
        ("{a: {b: 1}}", "{a: null}", {"a": None}),
        ("{a: null}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{a: 1}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {use: blend}}", {"r": {"use": "blend"}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {use: pick, scale: 3}}", {"r": {"use": "pick", "top_k": 2, "scale": 3}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {top_k: 4}}", {"r": {"use": "pick", "top_k": 4}}),
        ("{r: {use: pick, top_k: 2}}", "{r: blend}", {"r": {"use": "blend"}}),
        ("{r: {use: pick, top_k: 2}}", "{r: pick}", {"r": {"use": "pick", "top_k": 2}}),
        ("{r: pick}", "{r: {top_k: 4}}", {"r": {"use": "pick", "top_k": 4}}),
        ("{r: pick}", "{r: {use: blend, bias: false}}", {"r": {"use": "blend", "bias": False}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {use: null}}", {"r": {"use": None}}),
        ("{m: {use: tower, moe: {r: pick}}}", "{m: {use: stack}}", {"m": {"use": "stack"}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {use: base/pick}}", {"r": {"use": "base/pick", "top_k": 2}}),
        ("{r: {use: base/pick, top_k: 2}}", "{r: {use: pick}}", {"r": {"use": "pick", "top_k": 2}}),
        ("{r: {use: pick, top_k: 2}}", "{r: {use: acme/pick}}", {"r": {"use": "acme/pick"}}),
    ],
)
def test_mappings_merge_and_another_use_replaces(base: str, over: str, result: object) -> None:
    assert merged(base, over) == result


def test_namesakes_are_not_one_component(with_acme: None) -> None:
    assert merged("{r: {use: base/pick, top_k: 2}}", "{r: {use: acme/pick}}") == {"r": {"use": "acme/pick"}}
    assert merged("{r: {use: pick, top_k: 2}}", "{r: {use: acme/pick}}") == {"r": {"use": "acme/pick"}}


def test_neither_tree_is_changed() -> None:
    base, over = read("{a: {b: 1}, r: {use: pick}}", "base"), read("{a: {c: 2}, r: blend}", "over")
    merge(base, over)
    assert base.data == {"a": {"b": 1}, "r": {"use": "pick"}}
    assert over.data == {"a": {"c": 2}, "r": "blend"}
    assert base.places[("r", "use")] == Place("base", 1)


def test_places_follow_the_values() -> None:
    base = read("r:\n  use: pick\n  top_k: 2\na:\n  b: 1\n", "base")
    over = read("a:\n  c: 1\nr: {use: blend}\n", "over")
    places = merge(base, over).places
    assert places[("a",)] == Place("over", 1)
    assert places[("a", "b")] == Place("base", 5)
    assert places[("r", "use")] == Place("over", 3)
    assert ("r", "top_k") not in places


def test_an_empty_base_takes_everything() -> None:
    assert merge(Tree({}), read("{a: 1}", "over")).data == {"a": 1}


def test_a_strategy_with_options_is_replaced_by_a_name() -> None:
    """As when a sharded run is resumed in one process: ``auto`` has no options of its own."""
    sharded = "trainer: {strategy: {use: sharded, ep: 2}}"
    assert merged(sharded, "trainer: {strategy: auto}") == {"trainer": {"strategy": {"use": "auto"}}}
    assert merged(sharded, "trainer: {strategy: sharded}") == {"trainer": {"strategy": {"use": "sharded", "ep": 2}}}
