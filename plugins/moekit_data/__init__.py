"""First-party data."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_data() -> list[Component]:
    """The data of this plugin."""
    return []
