"""Names of a package are imported on first use."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import moekit
from moekit import moe_layer
from moekit.plugin import Plugin
from moekit.registry import current


def test_every_listed_name_is_imported_from_its_module() -> None:
    assert {"MoELayer", "load", "Spec"} <= set(moekit.__all__) <= set(dir(moekit))
    stub = Path(f"{moekit.__file__}i").read_text(encoding="utf-8")
    assert set(moekit.__all__) == set(re.findall(r"^from .* import (\w+) as \1$", stub, re.MULTILINE))
    assert all(getattr(moekit, name) is not None for name in moekit.__all__)
    assert moekit.MoELayer is moe_layer.MoELayer


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'moekit' has no attribute 'nothing'"):
        moekit.nothing  # noqa: B018


FIRST_PARTY = [plugin for plugin in current().plugins if plugin.distribution == "moekit" and plugin.components]


@pytest.mark.parametrize("plugin", FIRST_PARTY, ids=lambda plugin: plugin.name)
def test_the_stub_of_a_plugin_lists_the_spec_and_the_class_of_each_component(plugin: Plugin) -> None:
    module = importlib.import_module(plugin.module)
    classes = [cls for c in plugin.components for cls in (c.spec_class, c.load()) if inspect.isclass(cls)]
    unlisted = [cls for cls in classes if getattr(module, cls.__name__, None) is not cls]
    assert unlisted == []
    assert {cls.__name__ for cls in classes} <= set(module.__all__)
