"""First-party optimizers and learning-rate schedules."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_optimizers import adafactor, adamw, constant, cosine, inverse_sqrt, sgd, stages, steps, wsd

MOEKIT_API = 1


@hookimpl
def moekit_optimizers() -> list[Component]:
    """The optimizers of this plugin."""
    return [adafactor.COMPONENT, adamw.COMPONENT, sgd.COMPONENT]


@hookimpl
def moekit_schedules() -> list[Component]:
    """The schedules of this plugin."""
    return [
        constant.COMPONENT,
        cosine.COMPONENT,
        inverse_sqrt.COMPONENT,
        stages.COMPONENT,
        steps.COMPONENT,
        wsd.COMPONENT,
    ]
