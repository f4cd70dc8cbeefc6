"""First-party models."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_models() -> list[Component]:
    """The models of this plugin."""
    return []


@hookimpl
def moekit_attention() -> list[Component]:
    """The attention of this plugin."""
    return []
