"""A field that is missing in ``config.json`` means what it means to transformers, or the folder is refused."""

from __future__ import annotations

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
