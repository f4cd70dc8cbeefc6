"""Names of a package are imported on first use."""

from __future__ import annotations

import pytest

import moekit
from moekit import moe_layer
from moekit.lazy import names_in


def test_every_listed_name_is_imported_from_its_module() -> None:
    assert {"MoELayer", "load", "Spec"} <= set(moekit.__all__) <= set(dir(moekit))
    assert set(moekit.__all__) == set(names_in(f"{moekit.__file__}i"))
    assert all(getattr(moekit, name) is not None for name in moekit.__all__)
    assert moekit.MoELayer is moe_layer.MoELayer


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'moekit' has no attribute 'nothing'"):
        moekit.nothing  # noqa: B018
