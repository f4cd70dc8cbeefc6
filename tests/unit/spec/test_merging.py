"""How one tree is merged over another, and the place of each value in the result."""

from __future__ import annotations

import random

import pytest
from omegaconf import OmegaConf

from moekit.registry import current
from moekit.spec.layers import Merged
from moekit.spec.planning import Planner
from moekit.spec.recipe import Recipe
from moekit.spec.references import is_readable
from moekit.spec.tree import Place, Report, Tree, read


def merge(*layers: str) -> Merged:
    return Merged(current(), [read(text, f"layer {i}") for i, text in enumerate(layers)])


def merged(*layers: str) -> object:
    return merge(*layers).data


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
        ("{r: pick}", "{r: [1]}", {"r": [1]}),
        ("{r: {use: pick}}", "{r: [1]}", {"r": [1]}),
        ("{a: [1]}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{a: 1}", "{a: '???'}", {"a": "???"}),
        ("{a: {b: 1}}", "{a: '???'}", {"a": "???"}),
        ("{a: '???'}", "{a: {b: 1}}", {"a": {"b": 1}}),
        ("{r: {use: pick, top_k: 2}}", "{r: '${x}'}", {"r": "${x}"}),
        ("{r: {use: '${x}', top_k: 2}}", "{r: {use: pick}}", {"r": {"use": "pick"}}),
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


def test_layers_are_not_changed() -> None:
    base, over = read("{a: {b: 1}, r: {use: pick}}", "base"), read("{a: {c: 2}, r: blend, x: '${'}", "over")
    Merged(current(), [base, over])
    assert base.data == {"a": {"b": 1}, "r": {"use": "pick"}}
    assert over.data == {"a": {"c": 2}, "r": "blend", "x": "${"}
    assert base.places[("r", "use")] == Place("base", 1)


def test_places_follow_the_values() -> None:
    places = merge("r:\n  use: pick\n  top_k: 2\na:\n  b: 1\n", "a:\n  c: 1\nr: {use: blend}\n").places
    assert places[("a",)] == Place("layer 1", 1)
    assert places[("a", "b")] == Place("layer 0", 5)
    assert places[("r", "use")] == Place("layer 1", 3)
    assert ("r", "top_k") not in places


def test_references_are_merged_as_they_are_written() -> None:
    assert merged("{a: '${b}', c: {d: '${.e}'}}", "{a: [1], c: {e: 2}}") == {"a": [1], "c": {"d": "${.e}", "e": 2}}
    assert merged("{a: {b: 1}}", "{a: '${c}'}") == {"a": "${c}"}


def test_a_strategy_with_options_is_replaced_by_a_name() -> None:
    """As when a sharded run is resumed in one process: ``auto`` has no options of its own."""
    sharded = "trainer: {strategy: {use: sharded, ep: 2}}"
    assert merged(sharded, "trainer: {strategy: auto}") == {"trainer": {"strategy": {"use": "auto"}}}
    assert merged(sharded, "trainer: {strategy: sharded}") == {"trainer": {"strategy": {"use": "sharded", "ep": 2}}}


def test_a_mapping_over_a_reference_waits_for_all_layers() -> None:
    layers = merge("a: {i: '${n}'}\nn: {x: 1}", "a:\n  i: {y: 2}", "n: {x: 3}")
    assert layers.data == {"a": {"i": "${n}"}, "n": {"x": 3}}
    ((path, held),) = layers.over.items()
    assert path == ("a", "i")
    assert [layer.data for layer in held] == [{"a": {"i": {"y": 2}}}]
    assert held[0].places == {("a", "i"): Place("layer 1", 2), ("a", "i", "y"): Place("layer 1", 2)}


def test_a_mapping_over_a_reference_that_is_replaced_is_dropped() -> None:
    layers = merge("a: {i: '${n}'}", "a: {i: {y: 2}}", "a: {i: 3}")
    assert layers.over == {}
    assert layers.data == {"a": {"i": 3}}


def test_a_text_that_cannot_be_parsed_does_not_spoil_the_others() -> None:
    layers = merge("{a: '${', b: ['${c', '${a}'], c: '${x y'}", "{c: 3}")
    assert layers.data == {"a": "${", "b": ["${c", "${a}"], "c": 3}
    planner = Planner(layers, current(), Report(layers.places))
    planner.root(Recipe)
    assert planner.unread == [("a",), ("b", 0)]
    assert layers.data["b"] == ["???", "${a}"]


@pytest.mark.parametrize("text", ["${" * 900 + "}" * 900, "${a}" * 2000])
def test_a_text_that_takes_long_to_parse_is_not_parsed(text: str) -> None:
    assert not is_readable(text)


def test_without_components_layers_merge_as_omegaconf_merges_them() -> None:
    rng = random.Random(0)

    def tree(depth: int) -> dict[str, object]:
        """Of mappings and numbers that may replace each other; OmegaConf refuses a list in place of a mapping."""
        kept = {key: rng.choice([rng.randrange(9), None, tree(depth + 1)]) for key in "abc" if rng.random() < 1 / depth}
        return {**kept, "items": [rng.randrange(9)]} if rng.random() < 0.5 else kept

    for _ in range(50):
        layers = [tree(1) for _ in range(3)]
        expected = OmegaConf.to_container(OmegaConf.unsafe_merge(*layers))
        assert Merged(current(), [Tree(layer, {}) for layer in layers]).data == expected
