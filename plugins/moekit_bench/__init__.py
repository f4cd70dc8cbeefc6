"""Benchmarks: sparse layers against dense ones, routers, dispatch alone, and whole training steps.

Every figure is a ratio between variants that run interleaved, in one process: each round runs all of them, so a slow
moment of the machine slows all of them. Milliseconds are printed next to the ratios. ``moekit bench`` is the command;
``docs/benchmarks.md`` says how to read its tables.
"""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verb of this plugin."""
    summary = "measure layers, routers and training steps, side by side"
    return [Verb(name="bench", target="moekit_bench.cli", summary=summary)]
