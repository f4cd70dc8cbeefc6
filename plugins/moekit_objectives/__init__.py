"""First-party objectives."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_objectives() -> list[Component]:
    """The objectives of this plugin."""
    return []
