"""First-party optimizers and learning-rate schedules."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_optimizers import adamw, constant, cosine, sgd, wsd

MOEKIT_API = 1


@hookimpl
def moekit_optimizers() -> list[Component]:
    """The optimizers of this plugin."""
    return [adamw.COMPONENT, sgd.COMPONENT]


@hookimpl
def moekit_schedules() -> list[Component]:
    """The schedules of this plugin."""
    return [constant.COMPONENT, cosine.COMPONENT, wsd.COMPONENT]
