"""First-party optimizers."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_optimizers() -> list[Component]:
    """The optimizers of this plugin."""
    return []


@hookimpl
def moekit_schedules() -> list[Component]:
    """The schedules of this plugin."""
    return []
