"""Specs: how options are declared, loaded, overridden, validated, compared and printed. Torch-free.

Names are imported on first use: a plugin needs only ``moekit.spec.fields``, and listing plugins reads no YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekit.lazy import imports_in, lazy_exports

if TYPE_CHECKING:
    from moekit.spec.diffing import Change as Change
    from moekit.spec.diffing import diff as diff
    from moekit.spec.dumping import dump as dump
    from moekit.spec.dumping import to_config as to_config
    from moekit.spec.dumping import to_plain as to_plain
    from moekit.spec.loading import component_spec as component_spec
    from moekit.spec.loading import load as load
    from moekit.spec.loading import validate as validate

__getattr__, __dir__, __all__ = lazy_exports(__name__, imports_in(__file__))
