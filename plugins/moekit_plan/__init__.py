"""The size of a model, and of a run on many devices before it is started: memory and traffic, for each layout.

Nothing is allocated and nothing is communicated: a model of any size takes seconds. The memory of a forward and
backward pass is measured on tensors without storage, so the plan holds for any model, also a third party's.
``moekit params`` and ``moekit plan`` are the commands; ``docs/scaling_out.md`` explains its figures.
"""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(
            name="params", target="moekit_plan.params_cli", summary="count parameters, total and active, part by part"
        ),
        Verb(
            name="plan",
            target="moekit_plan.cli",
            summary="estimate memory per device and traffic of a run on many devices",
        ),
    ]
