"""OmegaConf's configs as sources: they load as the same YAML text does, mistakes included; and parts of larger ones."""

# ruff: noqa: E501 - whole messages are written here

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spec_fakes as fakes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pages import whole

from moekit.errors import SpecError
from moekit.spec import component_spec, load
from moekit.spec.references import register_resolver
from moekit.spec.tree import write as yaml

Write = Callable[[str, str], str]


def test_a_config_loads_as_a_mapping_does() -> None:
    config = OmegaConf.create({"extends": ["small"], "optimizer": {"betas": [0.1, "${optimizer.lr}"]}, "seed": 3})
    recipe = load(config)
    assert (recipe.optimizer, recipe.seed, recipe.name) == (fakes.Step(lr=3e-3, betas=[0.1, 3e-3]), 3, "small")
    assert load(config, OmegaConf.create(["seed=4"])).seed == 4


def test_sources_in_a_list_are_merged_in_order() -> None:
    sources: list[Any] = ["small", {"seed": 3, "data": {"seq": 8}}, OmegaConf.create({"seed": 4})]
    recipe = load(sources)
    assert (recipe.name, recipe.seed, recipe.data) == ("small", 4, fakes.Lines(seq=8))
    assert load(OmegaConf.create(["small", {"seed": 4, "data": {"seq": 8}}])) == recipe
    assert load([recipe, {"seed": 5}]).seed == 5


@pytest.mark.parametrize("source", [OmegaConf.create({}), OmegaConf.create([]), 3, None, [["small"]]])
def test_another_source_is_rejected(source: Any) -> None:
    with pytest.raises(SpecError, match=r"is not a spec\n  expected a recipe's name|a recipe needs 'model'"):
        load(source)


def test_a_config_is_not_changed() -> None:
    config = OmegaConf.create(
        {"extends": "small", "model": {"moe": {"shared": "${.experts}"}}, "data": {"seq": "${seed}"}}
    )
    OmegaConf.set_readonly(config, True)
    OmegaConf.set_struct(config, True)
    before = OmegaConf.to_yaml(config)
    with pytest.raises(SpecError, match="seq: 0 "):
        load(config)
    assert load(config, ["seed=2"]).model.moe.shared == fakes.Wide(count=4, hidden=16)
    assert OmegaConf.to_yaml(config) == before


def test_a_part_of_a_larger_config_is_resolved_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_TEST_SEQ", "16")
    app = OmegaConf.create(
        {
            "width": 12,
            "note": "a \\${literal}",
            "paths": {"data": "/data/${width}"},
            "run": {
                "extends": ["small"],
                "summary": "${note}",
                "model": {
                    "width": "${width}",
                    "ffn": {"use": "wide", "hidden": "${..width}"},
                    "moe": {"router": {"top_k": "${....seed}"}},
                },
                "data": {"path": "${paths.data}", "seq": "${oc.decode:${oc.env:MOEKIT_TEST_SEQ}}"},
                "optimizer": {"betas": ["${oc.decode:'0.5'}", 0.25]},
                "seed": 3,
            },
        }
    )
    recipe = load(app.run)
    assert (recipe.model.width, recipe.model.ffn.hidden, recipe.model.moe.router.top_k) == (12, 12, 3)
    assert (recipe.data, recipe.summary) == (fakes.Lines(seq=16, path="/data/12"), "a ${literal}")
    assert recipe.optimizer.betas == [0.5, 0.25]
    assert component_spec("router", OmegaConf.create({"k": 2, "r": {"use": "pick", "top_k": "${k}"}}).r).top_k == 2


def test_every_mistake_in_a_part_of_a_larger_config_is_reported() -> None:
    app = OmegaConf.create(
        {"open": "???", "run": {"extends": "small", "seed": "${open}", "data": {"seq": "${nothing}", "path": "${x:}"}}}
    )
    with pytest.raises(SpecError, match=r"^2 problems") as caught:
        load(app.run)
    assert [(p.at, p.what) for p in caught.value.problems] == [
        ("data.seq", "cannot resolve '${nothing}': 'nothing' does not exist"),
        ("data.path", "cannot resolve '${x:}': Unsupported interpolation type x"),
    ]
    app.run.data = {"use": "lines"}
    with pytest.raises(
        SpecError, match=whole("seed: the recipe leaves this open ('???')\n  at seed\n  expected an integer >= 0")
    ):
        load(app.run)


def test_a_mistake_in_a_config_is_reported_with_its_path() -> None:
    with pytest.raises(
        SpecError,
        match=whole("top_k: 99 is out of range\n  at model.moe.router.top_k\n  expected an integer >= 1 and <= 8"),
    ):
        load(OmegaConf.create({"extends": "small", "model": {"moe": {"router": {"top_k": 99}}}}))
    with pytest.raises(
        SpecError,
        match=whole(
            "router: a list is not a component\n  expected {use: <router>, ...}\n  list them: moekit ls routers"
        ),
    ):
        component_spec("router", OmegaConf.create(["pick"]))  # type: ignore[arg-type]


def test_python_values_are_read_as_omegaconf_reads_them() -> None:
    plain = {"extends": "small", "data": {"path": Path("/data")}, "optimizer": {"betas": (0.5, 0.25)}}
    assert load(plain) == load(OmegaConf.create(plain))
    assert load(plain).data.path == "/data"


ENVIRONMENT = {"MOEKIT_TEST_A": "4", "MOEKIT_TEST_B": "walk"}
TEXTS = st.sampled_from(
    [
        *("${seed}", "${model.width}", "${data.seq}", "${data.vocab}", "${.vocab}", "${..data.seq}", "x${seed}-${name}"),
        *("${oc.decode:${oc.env:MOEKIT_TEST_A}}", "${oc.env:MOEKIT_TEST_B}", "${oc.env:MOEKIT_UNSET_HERE}", "${twice:${seed}}"),
        *("${model.moe.experts}", "${.experts}", "${model.moe.router}", "${model.moe.experts.use}", "${model.nothing}", "${moe}"),
        *("${make:}", "${optimizer.betas}", "${optimizer.betas[0]}", "???", "\\${x}", "pick", "blend", "wide", "walk", "nudge", "x", ""),
    ]
)  # fmt: skip
SCALAR = st.none() | st.booleans() | st.integers(-3, 20) | st.floats(-1, 2, width=16) | TEXTS
NODE = st.deferred(
    lambda: (
        SCALAR
        | st.lists(SCALAR, max_size=3)
        | st.fixed_dictionaries({"use": TEXTS}, optional=dict.fromkeys(("top_k", "count", "hidden", "rate"), SCALAR))
        | st.fixed_dictionaries({}, optional=dict.fromkeys(("top_k", "count", "hidden", "rate", "depth"), SCALAR))
    )
)
MOE = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("router", "experts", "dispatcher", "shared"), NODE) | {"balancers": st.dictionaries(st.sampled_from(["bias", "load"]), NODE) | NODE}
)  # fmt: skip
MODEL = st.fixed_dictionaries(
    {}, optional={"use": TEXTS, "moe": MOE | NODE, "ffn": NODE, "head": NODE} | dict.fromkeys(("width", "vocab", "note"), SCALAR)
)  # fmt: skip
RECIPES = st.fixed_dictionaries(
    {"name": st.just("mine"), "extends": st.sampled_from(["small", ["small"], ["more/tiny", "small"]])},
    optional={
        "model": MODEL | NODE,
        "data": st.fixed_dictionaries({}, optional=dict.fromkeys(("seq", "vocab", "path"), SCALAR)) | NODE,
        "optimizer": st.fixed_dictionaries({}, optional={"lr": SCALAR, "betas": NODE}) | NODE,
        "seed": SCALAR,
        "summary": SCALAR,
        "trainer": st.dictionaries(st.sampled_from(["max_steps", "devices"]), NODE),
    },
)


def loaded(source: Any) -> Any:
    """The recipe; or the problems, without their places."""
    try:
        return load(source)
    except SpecError as error:
        return sorted((p.at, p.what, p.expected, p.nearest, p.list_with, p.notes) for p in error.problems)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(RECIPES)
def test_a_config_loads_as_its_text_does_mistakes_included(write: Write, plain: dict[str, Any]) -> None:
    os.environ |= ENVIRONMENT
    register_resolver("twice", lambda number: 2 * number)
    register_resolver("make", lambda: {"use": "wide", "hidden": 2})
    try:
        write("mine.yaml", yaml(plain))
        by_text = loaded("mine.yaml")
        by_config = loaded(OmegaConf.create(plain))
        if not isinstance(by_text, list):
            by_config, by_text = by_config.model, by_text.model
        assert by_config == by_text
        assert loaded(plain) == loaded(OmegaConf.create(plain))
    finally:
        OmegaConf.clear_resolvers()
        for name in ENVIRONMENT:
            del os.environ[name]
