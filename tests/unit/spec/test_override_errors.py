"""Overrides that cannot be read: the whole report of each."""

from __future__ import annotations

import pytest

from moekit.errors import SpecError
from moekit.spec import validate

CASES: dict[str, tuple[list[str], str]] = {
    "override_without_a_value": (
        ["model.width"],
        r"""
override 'model.width' is malformed
  in command line
  expected path.to.option=value
""",
    ),
    "override_without_a_name": (
        ["=3"],
        r"""
override '=3' is malformed
  in command line
  expected path.to.option=value
""",
    ),
    "override_with_an_empty_key": (
        ["model..width=3"],
        r"""
override 'model..width=3' is malformed
  in command line
  expected path.to.option=value
""",
    ),
    "override_of_extends": (
        ["extends=more/tiny"],
        r"""
extends cannot be set by an override
  at extends  in command line
  expected a file that extends the recipe
""",
    ),
    "override_that_is_no_yaml": (
        ["model={use: tower"],
        r"""
not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
  at model  in command line
""",
    ),
    "override_with_a_key_twice": (
        ["model={use: tower, width: 3, width: 4}"],
        r"""
key 'width' stands twice
  at model.width  in command line
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message(name: str) -> None:
    overrides, message = CASES[name]
    with pytest.raises(SpecError) as caught:
        validate("small", overrides)
    assert str(caught.value) == message.strip("\n")
