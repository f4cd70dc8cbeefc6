"""The size of a run on many devices, before it is started: memory of a device and traffic, for each layout.

Nothing is allocated and nothing is communicated: a model of any size takes seconds. The memory of a forward and
backward pass is measured on tensors without storage, so the plan holds for any model, also a third party's.
``moekit plan`` is the command; ``docs/scaling_out.md`` explains its figures.
"""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verb of this plugin."""
    summary = "estimate memory per device and traffic of a run on many devices"
    return [Verb(name="plan", target="moekit_plan.cli", summary=summary)]
