"""Papers' claims, measured: ``moekit reproduce``, and the kind ``claim``, by which any plugin adds papers of its own.

A claim's spec holds the sizes of its experiment, and its target returns a ``Study``: which models are trained, and what
must come out of them. ``docs/ledger.md`` is what the command wrote here.
"""

from __future__ import annotations

from moekit.component import Component, Kind, Verb
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_kinds() -> list[Kind]:
    """The kind of this plugin."""
    return [
        Kind(
            name="claim",
            spec="moekit_reproduce.study:ClaimSpec",
            summary="what a paper claims, as a small experiment that moekit reproduce runs",
            makes="moekit_reproduce.study:Study",
        )
    ]


def _claim(name: str, spec: str, summary: str, paper: str) -> Component:
    module = f"moekit_reproduce.papers.{name}"
    return Component(
        kind="claim", name=name, spec=f"{module}:{spec}", target=f"{module}:study", summary=summary, paper=paper
    )


@hookimpl
def moekit_components() -> list[Component]:
    """The claims of this plugin, oldest paper first."""
    return [
        _claim("jacobs1991", "Jacobs1991", "epochs to a criterion, active experts", "Jacobs et al. 1991"),
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verb of this plugin."""
    summary = "measure what a paper claims, over several seeds, and keep a ledger"
    return [Verb(name="reproduce", target="moekit_reproduce.cli", summary=summary)]
