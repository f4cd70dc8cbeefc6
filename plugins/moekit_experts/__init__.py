"""First-party experts modules, with weights stacked over experts."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_experts import ffn, glu, linear

MOEKIT_API = 1


@hookimpl
def moekit_experts() -> list[Component]:
    """The experts of this plugin."""
    return [ffn.COMPONENT, glu.COMPONENT, *linear.COMPONENTS]
