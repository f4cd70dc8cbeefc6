"""Versions, what moekit requires and can do without, and plugins."""

from __future__ import annotations

import importlib
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

import moekit
from moekit.errors import PluginError
from moekit.extras import install
from moekit.registry import Registry
from moekit_doctor.finding import Finding

FOR_DEVELOPERS = {"test", "dev"}
"""Extras of moekit that are not looked at."""

SLOW_IMPORT = 1.0
"""Seconds of a plugin's import that are worth a note."""

SLOW_FRAMEWORK = 10.0
"""Seconds to import torch or Lightning that are worth a note."""


def software(registry: Registry) -> Iterator[Finding]:
    """Everything that is installed."""
    yield Finding("software", "moekit", moekit.__version__)
    yield Finding("software", "python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("software", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield from imports()
    yield from requirements()
    yield from plugins(registry)


def requirements() -> Iterator[Finding]:
    """What moekit's metadata requires, and whether it is here; of an extra, what is missing and how to get it."""
    try:
        needed = [Requirement(each) for each in requires("moekit") or ()]
    except PackageNotFoundError:
        advice = "pip install moekit, or pip install -e . in its folder"
        yield Finding("software", "packages", "moekit is not installed, but found on the path", "note", advice)
        return
    extras: dict[str, list[Requirement]] = {}
    for each in needed:
        extra = _extra(each)
        if extra is None and (each.marker is None or each.marker.evaluate()):
            yield _required(each)
        elif extra is not None and extra not in FOR_DEVELOPERS and each.name != "moekit":
            if each.marker is not None and each.marker.evaluate({"extra": extra}):
                extras.setdefault(extra, []).append(each)
    for extra, parts in sorted(extras.items()):
        yield _optional(extra, parts)


def _extra(of: Requirement) -> str | None:
    """The extra that a requirement belongs to; None for one of every installation."""
    _, found, rest = str(of.marker or "").partition('extra == "')
    return rest.partition('"')[0] if found else None


def _required(each: Requirement) -> Finding:
    found = _version(each.name)
    if found is None:
        return Finding("software", each.name, "missing", "fault", f"pip install '{each.name}{each.specifier}'")
    if not each.specifier.contains(found, prereleases=True):
        advice = f"pip install '{each.name}{each.specifier}'"
        return Finding("software", each.name, f"{found}, and moekit needs {each.specifier}", "fault", advice)
    return Finding("software", each.name, found)


def _optional(extra: str, parts: list[Requirement]) -> Finding:
    found = {each: _version(each.name) for each in parts}
    missing = [each.name for each, is_here in found.items() if is_here is None]
    wrong = [
        f"{each.name} {is_here}, not {each.specifier}"
        for each, is_here in found.items()
        if is_here is not None and not each.specifier.contains(is_here, prereleases=True)
    ]
    if wrong:
        return Finding("extras", extra, ", ".join(wrong), "note", install(extra))
    if missing:
        return Finding("extras", extra, f"without {', '.join(missing)}", advice=install(extra))
    return Finding("extras", extra, ", ".join(f"{each.name} {is_here}" for each, is_here in found.items()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def imports() -> Iterator[Finding]:
    """How long torch and Lightning take to import, unless this process has imported them before."""
    for name in ("torch", "lightning"):
        if name in sys.modules:
            continue
        start = time.perf_counter()
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a broken library, a missing driver
            yield Finding("software", f"import {name}", f"{type(error).__name__}: {error}", "fault", "install it again")
            continue
        seconds = time.perf_counter() - start
        slow = seconds > SLOW_FRAMEWORK
        advice = "a cold or slow disk: try again, and keep the environment on a local disk" if slow else ""
        yield Finding("software", f"import {name}", f"{seconds:.1f} s", "note" if slow else "ok", advice)


def plugins(registry: Registry) -> Iterator[Finding]:
    """Every plugin: whether it loads, whether its components' specs do, and what makes it slow."""
    for plugin in registry.plugins:
        where = plugin.origin
        if plugin.error is not None:
            yield Finding("plugins", plugin.name, plugin.error, "fault", "moekit plugins --trace")
            continue
        try:
            for component in plugin.components:
                _ = component.spec_class
        except PluginError as error:
            yield Finding("plugins", plugin.name, str(error).partition("\n")[0], "fault", "moekit plugins")
            continue
        if plugin.imports_torch:
            advice = "its author should name its classes by import strings"
            yield Finding("plugins", plugin.name, f"{where}; it imports torch with every command", "note", advice)
        elif plugin.seconds > SLOW_IMPORT:
            advice = f"MOEKIT_DISABLE_PLUGINS={plugin.name} omits it"
            yield Finding(
                "plugins", plugin.name, f"{where}; every command waits {plugin.seconds:.1f} s for it", "note", advice
            )
        else:
            yield Finding("plugins", plugin.name, where)
    if registry.disabled:
        yield Finding("plugins", "MOEKIT_DISABLE_PLUGINS", f"disables {', '.join(registry.disabled)}")
