"""First-party balancers."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_balancers() -> list[Component]:
    """The balancers of this plugin."""
    return []
