"""Specs to plain data and text, and back: nothing is lost, whatever the values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from spec_fakes import Bag, Head, Pick, Tower, Unregistered

from moekit.errors import PluginError
from moekit.spec import component_spec, dump, load, to_config, to_plain
from moekit.spec.fields import LARGEST
from moekit.spec.recipe import Recipe, TrainerSpec
from moekit.spec.tree import read


def test_every_option_is_written_in_the_order_of_the_schema() -> None:
    assert dump(load("small").model) == (
        "use: tower\n"
        "width: 8\n"
        "vocab: 256\n"
        "note: plain\n"
        "ffn: null\n"
        "moe:\n"
        "  router:\n"
        "    use: pick\n"
        "    top_k: 2\n"
        "    score: softmax\n"
        "    scale: 1.0\n"
        "    renormalize: false\n"
        "  experts:\n"
        "    use: wide\n"
        "    count: 4\n"
        "    hidden: 16\n"
        "  dispatcher:\n"
        "    use: walk\n"
        "  shared: null\n"
        "  balancers:\n"
        "    bias:\n"
        "      use: nudge\n"
        "      rate: 0.01\n"
        "  gate_on: output\n"
        "head: null\n"
    )


def test_recipes_and_groups_are_written_without_use() -> None:
    plain = to_plain(load("small"))
    assert list(plain)[:4] == ["schema", "requires", "name", "summary"]
    assert to_plain(Head(depth=3)) == {"depth": 3, "tied": True}


def test_namesakes_are_written_with_their_plugin(with_acme: None) -> None:
    assert to_plain(Pick(top_k=2))["use"] == "base/pick"


def test_a_spec_that_no_plugin_offers_cannot_be_written() -> None:
    with pytest.raises(PluginError, match="Unregistered"):
        to_plain(Unregistered())


def test_a_config_is_resolved_and_refers_to_nothing() -> None:
    config = to_config(load("small"))
    assert isinstance(config, DictConfig)
    assert (config.model.vocab, config.model.moe.router.use) == (256, "pick")
    assert OmegaConf.to_container(config, resolve=True) == to_plain(load("small"))


def test_a_list_that_a_spec_holds_twice_is_written_without_an_alias() -> None:
    shared = [1, 2]
    recipe = load("small", ["trainer.callbacks.mine={class: lightning.pytorch.callbacks.Timer}"])
    part = replace(recipe.trainer.callbacks["mine"], arguments={"a": shared, "b": shared, "c": {"d": shared}})
    text = dump(replace(recipe, trainer=replace(recipe.trainer, callbacks={"mine": part})))
    assert "&" not in text and text.count("[1, 2]") == 3


def test_plain_data_is_a_copy() -> None:
    recipe = load("small")
    to_plain(recipe)["trainer"]["callbacks"]["mine"] = 99
    assert recipe.trainer == TrainerSpec(max_steps=10)


ODD = ["${x}", "\\${x}", "\\\\${x}", "a${", "${data.vocab}", "C:\\", "\\", "$", "1e-4", "null", ""]


@pytest.mark.parametrize("text", ODD)
def test_text_that_looks_like_something_else_round_trips(text: str) -> None:
    recipe = Recipe(model=Bag(text=text, texts=[text, "${seed}"], anything={"k": text}))
    assert load(to_plain(recipe)) == recipe
    assert load(to_config(recipe)) == recipe
    assert load(read(dump(recipe), "f").data) == recipe


TEXT = st.text(max_size=10) | st.sampled_from([*ODD, "yes", "~", "0x1", "a: b", "- x", "#", "\u2028"])
TEXT = TEXT.filter(lambda text: text != "???")
INTEGER = st.integers(-LARGEST, LARGEST)
FLOAT = st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e100)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | INTEGER | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BAGS = st.builds(
    Bag,
    count=INTEGER,
    maybe=st.none() | INTEGER,
    rate=st.floats(-1e299, 1e299),
    flag=st.booleans(),
    text=TEXT,
    choice=st.sampled_from(["a", "b", None]),
    mixed=st.just("auto") | INTEGER | st.lists(INTEGER, max_size=3),
    pair=st.tuples(INTEGER, FLOAT),
    numbers=st.lists(FLOAT, max_size=3),
    texts=st.lists(TEXT, max_size=3),
    shares=st.dictionaries(TEXT, FLOAT, max_size=3),
    anything=st.dictionaries(TEXT, PLAIN, max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BAGS)
def test_any_values_round_trip(bag: Bag) -> None:
    assert component_spec("model", to_plain(bag)) == component_spec("model", to_config(bag)) == bag
    back = component_spec("model", read(dump(bag), "f").data)
    assert back == bag
    assert [type(value) for value in vars(back).values()] == [type(value) for value in vars(bag).values()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 2**40),
    top_k=st.integers(2, 8),
    scale=st.floats(1e-300, 1e300),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9_-]{0,6}", fullmatch=True), max_size=3, unique=True),
    head=st.none() | st.builds(Head, depth=st.integers(1, 9), tied=st.booleans()),
)
def test_any_tree_round_trips(width: int, top_k: int, scale: float, names: list[str], head: Head | None) -> None:
    plain = to_plain(load("small"))
    plain["model"] |= {"width": width, "head": head and to_plain(head)}
    plain["model"]["moe"]["router"] |= {"top_k": top_k, "scale": scale}
    plain["model"]["moe"]["balancers"] = {name: {"use": "fair"} for name in names}
    recipe = load(plain)
    assert isinstance(recipe.model, Tower)
    assert (recipe.model.width, recipe.model.head, list(recipe.model.moe.balancers)) == (width, head, names)
    assert load(read(dump(recipe), "f").data) == recipe
