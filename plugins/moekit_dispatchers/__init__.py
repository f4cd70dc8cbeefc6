"""First-party dispatchers."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_dispatchers() -> list[Component]:
    """The dispatchers of this plugin."""
    return []
