"""Dispatchers and routers to measure: their options, and errors in them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moekit.errors import MoekitError, SpecError
from moekit_bench.components import dispatchers_for, nodes_of, routers_for
from moekit_bench.request import Shape

SHAPE = Shape(16, 8, 16, 8, 4)


def test_routers_choose_k_experts_unless_their_options_say_otherwise() -> None:
    specs: dict[str, Any] = routers_for(SHAPE, ["topk", "{use: topk, top_k: 1}", "dense"]).specs
    assert specs["topk"].top_k == 4
    assert specs["topk(top_k=1)"].top_k == 1
    assert routers_for(SHAPE, []).specs["hierarchical"].active(8) == 4
    assert {"hierarchical", "hash"} <= set(routers_for(SHAPE._replace(K=2), []).skips)
    with pytest.raises(MoekitError, match="reads token ids, and tokens to measure with have none"):
        routers_for(SHAPE, ["{use: hash, vocab: 64}"])


def test_components_are_given_by_names_or_as_yaml() -> None:
    assert nodes_of(["a, b", "{use: c, d: 1e-3}"], "routers") == {
        "a": {"use": "a"},
        "b": {"use": "b"},
        "c(d=0.001)": {"use": "c", "d": 1e-3},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "in --routers {"),
        ("{use: [}", "not valid YAML"),
        ("{a: 1}", "--routers '{a: 1}' has no 'use'"),
        ("{use:topk}", "has no 'use'"),
        (" , ", "--routers ' , ' has no name"),
        ("", "--routers '' has no name"),
    ],
)
def test_an_option_without_a_component_is_rejected(text: str, said: str) -> None:
    with pytest.raises(MoekitError, match=re.escape(said)):
        nodes_of([text], "routers")


def test_a_requested_component_must_exist_and_fit() -> None:
    with pytest.raises(MoekitError, match="--dispatchers soft: takes soft"):
        dispatchers_for(SHAPE, ["soft"])
    with pytest.raises(SpecError, match="groups"):
        dispatchers_for(SHAPE, ["device_capacity"])
    with pytest.raises(MoekitError, match="did you mean 'grouped'"):
        dispatchers_for(SHAPE, ["gruoped"])
    with pytest.raises(MoekitError, match="does not divide the 8 experts"):
        dispatchers_for(SHAPE, ["{use: device_capacity, groups: 3, inner: loop}"])
    with pytest.raises(MoekitError, match=r"factor: 'x' is not a number(.|\n)*at factor  in --dispatchers capacity"):
        dispatchers_for(SHAPE, ["{use: capacity, factor: x}"])
    with pytest.raises(MoekitError, match="top_k=9 is more than the 8 experts"):
        routers_for(SHAPE, ["{use: topk, top_k: 9}"])
    with pytest.raises(MoekitError, match=r"unknown router 'topp'(.|\n)*  in --routers topp\n"):
        routers_for(SHAPE, ["topp"])
