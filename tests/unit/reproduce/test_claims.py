"""The claims of this plugin: recipes that load, sources that are given, work that is matched where it is said to be."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import pytest

from moekit import build, load
from moekit.component import Component
from moekit.params import ParameterCount, count_parameters
from moekit.registry import current
from moekit.spec import component_spec
from moekit_reproduce.engine import planned
from moekit_reproduce.study import ClaimSpec, Study

CLAIMS = pytest.mark.parametrize(
    "claim", [c for c in current().components("claim") if c.plugin == "reproduce"], ids=lambda claim: claim.name
)


def study_of(name: str) -> Study:
    study: Study = build(component_spec("claim", name))
    return study


@cache
def counted(claim: str, arm: str) -> ParameterCount:
    (found,) = [each for each in study_of(claim).arms if each.name == arm]
    return count_parameters(load(list(found.recipe)))


@CLAIMS
def test_every_arm_is_a_recipe_that_loads_and_names_are_unique(claim: Component) -> None:
    study = study_of(claim.name)
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names) >= 3
    for arm in study.arms:
        assert load(list(arm.recipe)).data is not None
        searched = {each.name for each in study.arms if each.rates and not each.rate_of}
        assert not arm.rate_of or arm.rate_of in searched
        ratios = {round(high / low, 6) for low, high in zip(arm.rates, arm.rates[1:], strict=False)}
        assert len(ratios) <= 1


@CLAIMS
def test_every_prediction_has_its_source_and_reads_only_values_of_its_arms(claim: Component) -> None:
    study = study_of(claim.name)
    values: dict[str, Any] = defaultdict(lambda: 1.5, curve=[(1, 2.0), (2, 1.0)])
    seen = {arm.name: values for arm in study.arms}
    for prediction in study.predictions:
        assert all((prediction.claim, prediction.paper, prediction.source, prediction.measure))
        try:
            assert isinstance(float(prediction.contrast(seen)), float)
        except ZeroDivisionError:  # of equal values
            assert "rise" in prediction.measure
    for panel in study.panels:
        for points in (panel.points or {}).values():
            assert {arm for _, arm in points} <= set(seen)


@CLAIMS
def test_the_quick_form_is_small_and_the_full_form_has_three_seeds_or_more(claim: Component) -> None:
    spec = component_spec("claim", claim.name)
    assert isinstance(spec, ClaimSpec) and spec.seeds >= 3 and spec.tune
    quick = component_spec("claim", {"use": claim.name, **type(spec).quick})
    assert isinstance(quick, ClaimSpec)
    assert planned(build(quick), quick) <= 20


@pytest.mark.parametrize(
    ("claim", "first", "second"),
    [
        ("gshard", "both", "dense"),
        ("switch", "Switch, 1.25", "dense"),
        ("glam", "mixture, 200", "dense, 200"),
        ("deepseek_moe", "8 of 64", "2 of 16"),
        ("deepseek_moe", "7 of 63 and 1 shared", "2 of 16"),
        ("shazeer2017", "(0.1, 0.1)", "4 experts, all run"),
    ],
)
def test_systems_of_equal_work_are_equal_up_to_the_router(claim: str, first: str, second: str) -> None:
    def work(arm: str) -> float:
        of = counted(claim, arm)
        return of.active("without_input") - of.active_parts["routers"]

    assert work(first) == work(second)
    assert counted(claim, first).active("without_input") / counted(claim, second).active("without_input") < 1.11


def test_dividing_experts_keeps_their_parameters() -> None:
    def experts(arm: str) -> int:
        of = counted("deepseek_moe", arm)
        return of.parts["routed experts"] + of.parts["shared experts"]

    assert experts("2 of 16") == experts("8 of 64") == experts("7 of 63 and 1 shared")


def test_latent_attention_keeps_as_much_as_one_key_head() -> None:
    from moekit_reproduce.papers.deepseek_v2 import MLA

    assert MLA["kv_rank"] + MLA["rope_dim"] == 2 * 16
