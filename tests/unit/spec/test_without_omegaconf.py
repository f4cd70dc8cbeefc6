"""What needs no conversion is read without OmegaConf, whose import takes longer than all else; with the same result."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from moekit.spec.interpolation import Resolver
from moekit.spec.places import Report
from moekit.spec.values import _node, scalar

LEAVES = st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False))


@settings(max_examples=50, deadline=None)
@given(value=st.one_of(LEAVES, st.text().filter(lambda text: "${" not in text)))
def test_a_value_of_the_right_type_is_what_omegaconf_makes_of_it(value: Any) -> None:
    converted = _node(type(value)).validate_and_convert(value)
    assert scalar(value, type(value)) == converted
    assert type(scalar(value, type(value))) is type(converted)


@settings(max_examples=30, deadline=None)
@given(value=LEAVES)
@pytest.mark.parametrize("reference", ["${data.vocab}", "${ data.vocab }"])
def test_a_reference_to_a_number_is_what_omegaconf_makes_of_it(reference: str, value: Any) -> None:
    tree = {"data": {"vocab": value}, "dim": reference}
    report = Report()
    resolved = Resolver(tree, report, []).resolve(reference, ("dim",))
    assert resolved == OmegaConf.create(tree).dim
    assert type(resolved) is type(value)
    assert not report


@pytest.mark.parametrize("recipe", ["jacobs1991", "deepseek_v3"])
def test_the_recipes_are_validated_without_omegaconf_and_torch(recipe: str) -> None:
    code = (
        "import sys; from moekit.spec import validate; validate(sys.argv[1]);"
        "print(sorted({'torch', 'omegaconf', 'rich', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, recipe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
