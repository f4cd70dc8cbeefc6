"""Configurations of Hugging Face with one field wrong: each is a model, or an error that names the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from command_lines import ends_in_time

from moekit.errors import MoekitError
from moekit.spec import to_plain
from moekit_hf.fields import FormatError
from moekit_hf.format import FormatSpec
from moekit_hf.matching import formats, model_of

LIMIT = 60  # s for a configuration
NEEDED: dict[str, Any] = {
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "q_lora_rank": None,
}
ODD = (
    *("x", "", "0.1", "false", [], ["x"], [None], [[1]], [10**9], {}, {"a": 1}, None, True, 1.5, 1, 0, -1),
    *(10**9, 10**20, 1e30, float("nan"), float("inf")),
)


def whole(family: FormatSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny configuration with the fields that files of its family must have."""
    found = {"model_type": family.model_type, **config}
    while True:
        try:
            return {**found, **family.config(to_plain(model_of(family, found, "config.json")))}
        except FormatError as error:
            if (missing := re.search(r"the field '(\w+)' is missing", str(error))) is None:
                raise
            assert missing[1] not in found
            found[missing[1]] = NEEDED.get(missing[1], 1)


def wrong(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """With each field, also those of a field that is a mapping, replaced by each odd value."""
    for name, value in config.items():
        for odd in ODD:
            yield f"{name}={odd!r}", {**config, name: odd}
            for inner in value if isinstance(value, Mapping) else ():
                yield f"{name}.{inner}={odd!r}", {**config, name: {**value, inner: odd}}


def test_a_configuration_is_a_model_or_an_error_message() -> None:
    refused = tried = 0
    for name, family in formats().items():
        for tiny in family.tiny():
            for what, config in wrong(whole(family, tiny)):
                tried += 1
                try:
                    with ends_in_time(LIMIT, TimeoutError):
                        model_of(family, config, "config.json")
                except MoekitError as error:
                    refused += 1
                    assert "config.json" in str(error), (name, what)
                except Exception as error:
                    raise AssertionError(f"{name}: {what}") from error
    assert tried > 20000 and refused > tried / 2
