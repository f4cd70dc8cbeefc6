"""Specs: how options are declared, loaded, overridden, validated, compared and printed. Torch-free.

Names are imported on first use: a plugin needs only ``moekit.spec.fields``, and listing plugins reads no YAML.
"""

from __future__ import annotations

from moekit.lazy import from_stub

__getattr__, __dir__, __all__ = from_stub(__name__, __file__)
