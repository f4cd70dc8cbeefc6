"""Finds and loads the installed plugins, first-party and third-party alike, by the entry-point group ``moekit``.

A plugin that fails is kept with its error and traceback, so that it does not stop the others.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import traceback
from collections.abc import Collection
from importlib.metadata import Distribution, EntryPoint
from typing import Any

from moekit.errors import PluginError
from moekit.plugin import Plugin, check_unique, load_plugin
from moekit.spec.recipe import Recipe

ENTRY_POINT_GROUP = "moekit"


def installed(*, disabled: Collection[str] = (), strict: bool = False) -> list[Plugin]:
    """Every installed plugin, sorted by name, including those that failed.

    Args:
        disabled: names of plugins to omit without importing them.
        strict: raise on the first plugin that fails.

    Raises:
        PluginError: a plugin failed, and ``strict`` is set.
    """
    plugins: list[Plugin] = []
    for entry, distribution, version in _entries():
        if entry.name in disabled:
            continue
        plugin = Plugin(name=entry.name, module=entry.value, distribution=distribution, version=version)
        module: Any = None
        try:
            check_unique(plugin, plugins)
            module = entry.load()
            plugin = load_plugin(entry.name, module, distribution=distribution, version=version)
        except (Exception, SystemExit) as error:
            plugin = _failed(plugin, error, api=getattr(module, "MOEKIT_API", None), strict=strict)
        plugins.append(plugin)
    return _with_one_owner_per_spec(plugins, strict=strict)


def _entries() -> list[tuple[EntryPoint, str, str]]:
    """Entry points with their distribution's name and version, sorted by name; of equal names moekit's own first."""
    known: dict[int, tuple[str, str]] = {}  # many entries share a distribution
    found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if id(entry.dist) not in known:
            known[id(entry.dist)] = _origin(entry.dist) if entry.dist else ("", "")
        found.append((entry, *known[id(entry.dist)]))
    return sorted(found, key=lambda e: (e[0].name, e[1] != "moekit", e[1], e[0].value))


def _origin(distribution: Distribution) -> tuple[str, str]:
    """Name and version, from the head of the metadata: ``importlib`` also parses the README, which slows start-up."""
    head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
    fields = dict(line.split(": ", 1) for line in reversed(head.splitlines()) if ": " in line)
    return fields.get("Name", ""), fields.get("Version", "")


def _failed(plugin: Plugin, error: BaseException, *, api: Any = None, strict: bool) -> Plugin:
    why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
    why = " ".join(why.removeprefix(f"plugin '{plugin.name}': ").split())
    if strict:
        raise PluginError(f"plugin '{plugin.name}' ({plugin.origin}) cannot be used: {why}") from error
    trace = "".join(traceback.format_exception(error))
    return dataclasses.replace(plugin, api=api, components=(), error=why, trace=trace)


def _with_one_owner_per_spec(plugins: list[Plugin], *, strict: bool) -> list[Plugin]:
    """The same plugins, but one that offers a spec class of another has failed; the package of the class keeps it."""
    out = list(plugins)
    owners_first = sorted(range(len(out)), key=lambda i: _offers_imported_spec(out[i]))
    accepted: list[Plugin] = []
    for i in owners_first:
        if out[i].error is None:
            try:
                check_unique(out[i], accepted)
                accepted.append(out[i])
            except PluginError as error:
                out[i] = _failed(out[i], error, api=out[i].api, strict=strict)
    return out


def _offers_imported_spec(plugin: Plugin) -> bool:
    """Whether a spec class comes from another package than the plugin."""
    home = plugin.module.partition(".")[0]
    return any(c.spec is not Recipe and c.spec.__module__.partition(".")[0] != home for c in plugin.components)
