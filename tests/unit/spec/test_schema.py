"""The JSON schema of recipes: it accepts every recipe as written, and rejects what ``load`` rejects."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from fake_plugins import KINDS, plugin
from jsonschema import Draft202012Validator
from spec_fakes import Bag, component

from moekit import registry
from moekit.component import Component, Kind
from moekit.errors import SpecError
from moekit.registry import Registry, current, discover
from moekit.spec import dump, load, validate
from moekit.spec.dumping import plain_value
from moekit.spec.fields import Spec, fields_of, slot
from moekit.spec.kinds import RouterSpec
from moekit.spec.tree import read
from moekit_testing.schema import recipe_schema

RECIPES = [recipe.full_name for recipe in discover().recipes]


@cache
def real() -> Draft202012Validator:
    return Draft202012Validator(recipe_schema(discover()))


def fake() -> Draft202012Validator:
    return Draft202012Validator(recipe_schema(current()))


def at(path: str, value: Any) -> dict[str, Any]:
    """Nested mappings with a value at a path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def wrong(validator: Draft202012Validator, text: str) -> list[Any]:
    """The mistakes in a recipe's text."""
    return [error.message for error in validator.iter_errors(read(text, "mine.yaml").data)]


def test_it_is_a_schema_and_every_default_in_it_fits_its_option() -> None:
    schema = real().schema
    Draft202012Validator.check_schema(schema)
    mappings = [schema, *schema["$defs"].values()]
    options = [option for each in mappings for option in each.get("properties", {}).values() if "default" in option]
    assert len(options) > 200
    for option in options:
        assert Draft202012Validator({**option, "$defs": schema["$defs"]}).is_valid(option["default"]), option


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_valid_as_written_and_as_saved(name: str, real_plugins: None) -> None:
    assert wrong(real(), current().recipe(name).path.read_text(encoding="utf-8")) == []
    assert wrong(real(), dump(load(name))) == []
    assert wrong(real(), dump(load(name), full_names=True)) == []


@pytest.mark.parametrize(
    "text",
    [
        "nam: mine",
        "seed: -1",
        "checkpoints: {kept: 2}",
        "extends: deepseek_v4",
        "model: decodr",
        "model: {use: decoder, dimm: 8}",
        "model: {use: decoder, dim: wide}",
        "model: {dimm: 8}",
        "model: {tied: 1}",
        "model: [decoder]",
        "model: {moe: {router: {use: topk, capacity: 2}}}",
        "model: {moe: {router: {top_k: 0}}}",
        "model: {moe: {router: {use: topk, score: sigmiod}}}",
        "model: {moe: {router: {use: [topk]}}}",
        "model: {moe: {balancers: [sign_bias]}}",
        "model: {moe: {balancers: {bias: {use: sign_bias, rates: 1}}}}",
        "optimizer: {use: adamw, betas: [0.9, high]}",
        "paper: {arxiv: 2412.10}",
    ],
)
def test_a_mistake_is_rejected_as_load_rejects_it(text: str, real_plugins: None) -> None:
    assert wrong(real(), f"{'' if 'extends' in text else 'extends: deepseek_v3'}\n{text}")
    source = read(text, "mine.yaml").data
    with pytest.raises(SpecError, match=r"^(?!2 problems|3 problems)"):
        validate(source if "extends" in source else ["deepseek_v3", source])


@pytest.mark.parametrize(
    "text",
    [
        "extends: [small, other.yaml]\nmodel: null",
        "model: tower\ndata: base/lines\nobjective: ${.other}",
        "model: {use: base/tower, width: '${data.seq}', vocab: '???', ffn: '${model.moe.experts}', head: '${.moe}'}",
        "model: {moe: {router: '???', balancers: {bias: null, fair: fair, both: '${.fair}'}}}",
        "model: {moe: {router: {use: '${name}', top_k: 2}}}",
        "model: {moe: {router: {top_k: 2}, balancers: '${other}'}}",
        "model: {use: bag, numbers: [0.9, '${seed}'], pair: ['${seed}', 0.5], shares: {a: '${seed}'}, rate: 1e-3}",
        "optimizer: {betas: ['${oc.env:BETA}', 0.9]}",
    ],
)
def test_interpolations_open_values_and_short_names_are_accepted(text: str) -> None:
    assert wrong(fake(), text) == []


VALUES: list[Any] = [0, 7, -1, 2.5, 400.0, 1e9, True, "a", "c", "auto", "3", "2.5", "true", "", None]
VALUES += [[], [1], [1, 2.5], [2.5, 1], ["a"], [[1]], [-1.0], {}, {"a": 1}, {"a": "b"}, {"a": [1]}]


@pytest.mark.parametrize("name", fields_of(Bag))
def test_a_type_accepts_what_load_accepts_without_conversion(name: str) -> None:
    validator = fake()
    rest = {"model": {"use": "bag"}}
    for value in VALUES:
        accepted = validator.is_valid(at(f"model.{name}", value))
        try:
            option = getattr(load([rest, at(f"model.{name}", value)]).model, name)
        except SpecError:
            assert not accepted, value
        else:
            converted = value is not None and plain_value(option) != value
            assert accepted or converted, value


def test_an_option_has_its_help_default_choices_and_range() -> None:
    topk = real().schema["$defs"]["router:routers/topk"]["properties"]
    assert topk["use"] == {"enum": ["topk", "routers/topk"]}
    assert topk["top_k"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert "experts" in topk["top_k"]["description"]
    assert "default" not in topk["top_k"]
    assert topk["score"]["anyOf"][0] == {"enum": ["softmax", "sigmoid"]}
    assert topk["score"]["default"] == "softmax"
    assert topk["scale"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}
    assert real().schema["$defs"]["moekit.spec.kinds:MoE"]["properties"]["dispatcher"]["default"] == "auto"


def test_a_name_of_two_plugins_may_be_that_of_either(with_acme: None) -> None:
    for use in ("pick", "base/pick", "acme/pick"):
        assert wrong(fake(), f"model: {{moe: {{router: {{use: {use}, top_k: 2}}}}}}") == []
    assert wrong(fake(), "model: {moe: {router: {use: acme/pick, score: softmax}}}")


class Reward(Spec):
    kind = "reward"


class Length(Reward):
    inner: Reward | None = slot("reward", "another, inside", optional=True)


class Judge(RouterSpec):
    reward: Reward = slot("reward", "what is good")


def test_a_plugins_own_kind_is_described_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [Kind(name="reward", spec=Reward, summary="scores text", imports="builtins:object")]
    acme = plugin("acme", kinds=kinds, components=[component("length", Length), component("judge", Judge)])
    monkeypatch.setattr(registry, "_current", Registry([KINDS, *current().plugins[1:], acme]))
    before = "model: {moe: {router: {use: judge, reward: "
    assert current().kind("reward").summary == fake().schema["$defs"]["reward"]["description"] == "scores text"
    assert wrong(fake(), f"{before}{{use: length, inner: {{use: length, inner: length}}}}}}}}}}") == []
    assert wrong(fake(), f"{before}{{class: acme.rewards.Short}}}}}}}}") == []
    assert wrong(fake(), f"{before}{{use: length, inner: {{use: length, iner: length}}}}}}}}}}")


def test_a_component_whose_spec_cannot_be_imported_takes_any_options(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Component(kind="router", name="lost", spec="nowhere:Lost", target="nowhere:Router", summary="lost")
    acme = plugin("acme", components=[lost])
    monkeypatch.setattr(registry, "_current", Registry([*current().plugins, acme]))
    assert "No module named 'nowhere'" in fake().schema["$defs"]["router:acme/lost"]["description"]
    assert wrong(fake(), "model: {moe: {router: {use: lost, anything: 1}}}") == []
    assert wrong(fake(), "model: {moe: {router: {anything: 1}}}") == []
    assert wrong(fake(), "model: {moe: {router: {use: pick, anything: 1}}}")
