"""Which plugins are installed. What is wrong with one is kept with its traceback, so that it stops no other.

Plugins are found by the entry-point group ``moekit``, first-party and third-party alike.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import traceback
from collections.abc import Collection
from importlib.metadata import Distribution, EntryPoint
from typing import Any

from moekit.errors import PluginError
from moekit.plugin import Plugin, check_beside, load_plugin
from moekit.spec.recipe import Recipe

ENTRY_POINT_GROUP = "moekit"


def installed(*, disabled: Collection[str] = (), strict: bool = False) -> list[Plugin]:
    """Every plugin of the entry-point group ``moekit``, by name, with those that failed.

    Args:
        disabled: names of plugins to leave out; they are not even imported.
        strict: raise on the first that fails.

    Raises:
        PluginError: a plugin failed, and ``strict`` was asked for.
    """
    plugins: list[Plugin] = []
    for entry, distribution, version in _entries():
        if entry.name in disabled:
            continue
        plugin = Plugin(name=entry.name, module=entry.value, distribution=distribution, version=version)
        module: Any = None
        try:
            check_beside(plugin, plugins)
            module = entry.load()
            plugin = load_plugin(entry.name, module, distribution=distribution, version=version)
        except (Exception, SystemExit) as error:
            plugin = _failed(plugin, error, api=getattr(module, "MOEKIT_API", None), strict=strict)
        plugins.append(plugin)
    return _settled(plugins, strict=strict)


def _entries() -> list[tuple[EntryPoint, str, str]]:
    """Entry points with their distribution's name and version, by name; among namesakes moekit's own comes first."""
    known: dict[int, tuple[str, str]] = {}  # many entries share a distribution
    found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if id(entry.dist) not in known:
            known[id(entry.dist)] = _origin(entry.dist) if entry.dist else ("", "")
        found.append((entry, *known[id(entry.dist)]))
    return sorted(found, key=lambda e: (e[0].name, e[1] != "moekit", e[1], e[0].value))


def _origin(distribution: Distribution) -> tuple[str, str]:
    """Name and version, from the head of the metadata: its own parser reads the whole README, and costs start-up."""
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


def _settled(plugins: list[Plugin], *, strict: bool) -> list[Plugin]:
    """The same plugins, with those refused that offer a spec class of another; its home package keeps it."""
    out = list(plugins)
    homes_first = sorted(range(len(out)), key=lambda i: _borrows(out[i]))
    accepted: list[Plugin] = []
    for i in homes_first:
        if out[i].error is None:
            try:
                check_beside(out[i], accepted)
                accepted.append(out[i])
            except PluginError as error:
                out[i] = _failed(out[i], error, api=out[i].api, strict=strict)
    return out


def _borrows(plugin: Plugin) -> bool:
    home = plugin.module.partition(".")[0]
    return any(c.spec is not Recipe and c.spec.__module__.partition(".")[0] != home for c in plugin.components)
