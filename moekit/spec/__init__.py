"""Specs: how options are declared, loaded, overridden, validated, compared and printed. Torch-free.

Names are imported on first use: plugins need only ``moekit.spec.fields``, and listing them should read no YAML.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.spec.diffing import Change as Change
    from moekit.spec.diffing import diff as diff
    from moekit.spec.dumping import dump as dump
    from moekit.spec.dumping import to_plain as to_plain
    from moekit.spec.loading import component_spec as component_spec
    from moekit.spec.loading import load as load
    from moekit.spec.loading import validate as validate

_MODULE_OF = {
    "Change": "diffing",
    "component_spec": "loading",
    "diff": "diffing",
    "dump": "dumping",
    "load": "loading",
    "to_plain": "dumping",
    "validate": "loading",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'moekit.spec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"moekit.spec.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
