"""First-party objectives: next-token prediction, and the errors of 1991."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_objectives import causal_lm, competitive, squared_error

MOEKIT_API = 1


@hookimpl
def moekit_objectives() -> list[Component]:
    """The objectives of this plugin."""
    return [causal_lm.COMPONENT, competitive.COMPONENT, squared_error.COMPONENT]
