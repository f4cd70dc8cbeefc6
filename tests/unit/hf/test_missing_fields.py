"""A missing field of ``config.json``, or one said twice, means what it means to transformers, or is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from moekit import to_plain
from moekit.registry import current
from moekit_hf.fields import FormatError
from moekit_hf.format import FormatSpec
from moekit_hf.matching import differences, model_of

FAMILIES = {each.name: each.spec_class() for each in current().components("format") if each.plugin == "hf"}


def understood(family: FormatSpec, config: dict[str, Any]) -> Any:
    """The model that a configuration describes; None if it is refused."""
    try:
        return to_plain(model_of(family, config, "config.json"))
    except FormatError:
        return None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_field_means_what_transformers_takes_it_to_be(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    family, wrong = FAMILIES[name], {}
    for tiny in family.tiny():
        full = json.loads(transformers.AutoConfig.for_model(family.model_type, **tiny).to_json_string())
        assert understood(family, full) is not None
        for field in set(full) - {"model_type"}:
            less = {key: value for key, value in full.items() if key != field}
            ours = understood(family, less)
            if ours is None:
                continue
            given = {key: value for key, value in less.items() if key not in ("model_type", "transformers_version")}
            try:
                read = transformers.AutoConfig.for_model(family.model_type, **given)
            except Exception:  # transformers does not take it at all
                continue
            theirs = understood(family, json.loads(read.to_json_string()))
            if theirs is not None and (differ := differences(ours, theirs)):
                wrong[field] = differ
    assert wrong == {}


HALF, ALL = {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}
LINEAR = {"type": "linear", "factor": 2.0}
OTHER: list[tuple[str, dict[str, Any]]] = [
    *((name, fields) for name in ("glm4-moe", "minimax-m2") for fields in (
        {**HALF, "rope_parameters": {"rope_theta": 1e4, **ALL}},
        {**ALL, "rope_parameters": {"rope_theta": 1e4, **HALF}},
        {"rope_scaling": {**LINEAR, **ALL}},
        {"rope_scaling": {**LINEAR, **ALL}, "rope_parameters": {"rope_theta": 1e4, **HALF}},
    )),
    ("minimax-m2", {"rope_parameters": None, "rotary_dim": 4}),
    ("minimax-m2", {"rope_parameters": None, "rotary_dim": 4, **HALF}),
    ("minimax-m2", {"rope_parameters": {"rope_theta": 1e4, **ALL}, "rotary_dim": 4}),
    *(("dots1", {"layer_types": layers, "sliding_window": window, "max_window_layers": first})
      for layers in (None, ["full_attention"] * 3) for window in (None, 6) for first in (1, 3)),
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    ("gpt-oss", {"rope_parameters": None}),
    ("gpt-oss", {"rope_scaling": None}),
    ("gpt-oss", {"rope_scaling": {}}),
    ("gpt-oss", {"rope_parameters": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), OTHER)
def test_fields_mean_what_transformers_takes_them_to_be(name: str, fields: dict[str, Any]) -> None:
    """What is understood of a file is understood of the file that transformers writes after reading it."""
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    plain = transformers.AutoConfig.for_model(family.model_type, **family.tiny()[0]).to_dict()
    rotary = ("rope_parameters", "rotary_dim", "model_type", "transformers_version")
    given = {**{key: value for key, value in plain.items() if key not in rotary}, **fields}
    ours = understood(family, copy.deepcopy(given))
    read = transformers.AutoConfig.for_model(family.model_type, **given)
    theirs = understood(family, json.loads(read.to_json_string()))
    assert ours is None or (theirs is not None and differences(ours, theirs) == [])
