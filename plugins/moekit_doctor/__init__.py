"""What moekit finds on a machine: versions, devices, threads, plugins, what is slow; and completion in shells."""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(name="doctor", target="moekit_doctor.cli.doctor", summary="check this machine: what is wrong or slow"),
        Verb(
            name="completion",
            target="moekit_doctor.cli.completion",
            summary="complete verbs, names and keys in a shell",
        ),
    ]
