"""First-party experts."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_experts() -> list[Component]:
    """The experts of this plugin."""
    return []
