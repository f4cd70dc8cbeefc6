"""Finds and loads the installed plugins, first-party and third-party alike, by the entry-point group ``moekit``.

A plugin that fails is kept with its error and traceback, so that it does not stop the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import re
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint
from operator import itemgetter

from moekit import __version__, builtin
from moekit.cli.core import VERBS
from moekit.component import Component
from moekit.errors import PluginError, nearest
from moekit.plugin import Plugin, load_plugin, shared_spec

ENTRY_POINT_GROUP = "moekit"
BUILTIN = "moekit"
"""The name of the plugin of moekit's own kinds."""


def installed(*, disabled: Collection[str] = (), strict: bool = False) -> list[Plugin]:
    """moekit's own kinds, then every installed plugin, sorted by name, including those that failed.

    Args:
        disabled: names of plugins to omit without importing them.
        strict: raise on the first plugin that fails, also for a spec that cannot be imported.

    Raises:
        PluginError: a plugin failed, and ``strict`` is set.
    """
    plugins = [load_plugin(BUILTIN, builtin, distribution="moekit", version=__version__)]
    for entry, distribution, version in _entries():
        if entry.name in disabled:
            continue
        plugins.append(_loaded(entry, distribution, version, strict=strict))
    plugins = checked(plugins)
    for plugin in plugins if strict else ():
        if plugin.error is not None:
            raise PluginError(_unusable(plugin, plugin.error))
        for component in plugin.components:
            _ = component.spec_class
    return plugins


def checked(plugins: Iterable[Plugin]) -> list[Plugin]:
    """The same plugins, of which those that conflict with another are marked as failed.

    A name belongs to the first plugin, and so does that of a kind; a spec class to the plugin in whose package it is
    defined, and a verb of moekit's own to moekit.
    """
    out = list(plugins)
    named: dict[str, Plugin] = {}
    for i, plugin in enumerate(out):
        if (first := named.setdefault(plugin.name, plugin)) is not plugin:
            out[i] = plugin.failed(f"the name is taken by {first.origin}; uninstall it, or rename one")
    owners: dict[str, tuple[Component, Plugin]] = {}  # by spec class
    homes = [tuple(plugin.module.partition(".")[0] + end for end in ".:") for plugin in out]
    borrows = [not all(spec.startswith(homes[i]) for spec in plugin.specs) for i, plugin in enumerate(out)]
    for i in sorted(range(len(out)), key=borrows.__getitem__):
        mine = out[i].specs
        if shared := min(mine.keys() & owners, default=""):
            theirs, owner = owners[shared]
            out[i] = out[i].failed(shared_spec(mine[shared], theirs, owner.origin))
        if out[i].name != BUILTIN and (taken := VERBS.keys() & {verb.name for verb in out[i].verbs}):
            out[i] = out[i].failed(f"verb '{min(taken)}' is one of moekit's own; give it another name")
        owners |= {spec: (component, out[i]) for spec, component in out[i].specs.items()}
    while True:  # a plugin that fails takes its kinds with it
        kinds = {kind.name: plugin for plugin in reversed(out) for kind in plugin.kinds}
        failed = _kind_conflicts(out, kinds)
        if not failed:
            return out
        out = [p.failed(failed[i]) if i in failed else p for i, p in enumerate(out)]


def _kind_conflicts(plugins: Iterable[Plugin], owners: Mapping[str, Plugin]) -> dict[int, str]:
    """Of each plugin whose kinds, or the kinds of whose components, cannot be used: its index, and why."""
    found: dict[int, str] = {}
    for i, plugin in enumerate(plugins):
        for kind in plugin.kinds:
            if owners[kind.name] is not plugin:
                found.setdefault(i, f"kind '{kind.name}' is offered by plugin '{owners[kind.name].name}' already")
        for component in plugin.components:
            if component.kind not in owners:
                near = nearest(component.kind, list(owners))
                hint = f"; did you mean '{near}'?" if near else f" (kinds: {', '.join(sorted(owners))})"
                found.setdefault(i, f"component '{component.name}': unknown kind '{component.kind}'{hint}")
    return found


def _loaded(entry: EntryPoint, distribution: str, version: str, *, strict: bool) -> Plugin:
    """The plugin of an entry point, imported. What it prints goes to stderr, so that it spoils no output."""
    module: object = None
    start, had_torch = time.perf_counter(), "torch" in sys.modules
    try:
        if entry.pattern.match(entry.value) is None:
            raise PluginError(f"its entry point is '{entry.value}'; expected the name of a module")
        with contextlib.redirect_stdout(sys.stderr):
            module = entry.load()
            seconds = time.perf_counter() - start
            plugin = load_plugin(entry.name, module, distribution=distribution, version=version, seconds=seconds)
        imports_torch = not had_torch and "torch" in sys.modules
        return dataclasses.replace(plugin, imports_torch=True) if imports_torch else plugin
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        import traceback  # not needed by a start without mistakes

        why = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        why = " ".join(why.removeprefix(f"plugin '{entry.name}': ").split())
        stated = getattr(module, "MOEKIT_API", None)
        api = stated if isinstance(stated, int) else None
        plugin = Plugin(name=entry.name, module=entry.value, distribution=distribution, version=version, api=api)
        if strict:
            raise PluginError(_unusable(plugin, why)) from error
        return plugin.failed(why, "".join(traceback.format_exception(error)))


def _unusable(plugin: Plugin, why: str) -> str:
    return f"plugin '{plugin.name}' ({plugin.origin}) cannot be used: {why}"


def _entries() -> list[tuple[EntryPoint, str, str]]:
    """Entry points with their distribution's name and version, sorted by name; of equal names moekit's own first."""
    known: dict[int, tuple[str, str]] = {}  # many entries share a distribution
    found = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if id(entry.dist) not in known:
            known[id(entry.dist)] = _origin(entry.dist) if entry.dist else ("", "")
        name, version = known[id(entry.dist)]
        found.append(((entry.name, name != "moekit", name, entry.value), (entry, name, version)))
    return [each for _, each in sorted(found, key=itemgetter(0))]


def _origin(distribution: Distribution) -> tuple[str, str]:
    """Name and version, from the head of the metadata: ``importlib`` also parses the README, which slows start-up."""
    head = (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").partition("\n\n")[0]
    fields = dict(reversed(re.findall(r"^(\S+): (.*)$", head, re.MULTILINE)))
    return fields.get("Name", ""), fields.get("Version", "")
