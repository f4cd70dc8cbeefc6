"""Plugins for tests: modules made in memory, and packages installed in a folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import ModuleType

from moekit import builtin
from moekit.component import API_VERSION
from moekit.hookspecs import hookimpl
from moekit.plugin import Plugin, load_plugin

KINDS = load_plugin("moekit", builtin, distribution="moekit", version="0.1.0")
"""The plugin of moekit's own kinds, which every registry needs."""


def module(name: str, **offers: object) -> ModuleType:
    """A plugin module with a hook for each offer, named without ``moekit_``: ``module("acme", components=[...])``."""
    made = ModuleType(name)
    made.MOEKIT_API = API_VERSION  # type: ignore[attr-defined]
    for what, offered in offers.items():
        setattr(made, f"moekit_{what}", hookimpl(lambda offered=offered: offered))
    return made


def plugin(name: str, distribution: str = "", version: str = "", **offers: object) -> Plugin:
    """The same, loaded."""
    return load_plugin(name, module(f"{name}_moe", **offers), distribution=distribution, version=version)


def install_project(folder: Path) -> None:
    """Writes below ``folder``, which has a pyproject.toml, what importlib.metadata reads of an installed package."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    required = "".join(f"Requires-Dist: {each}\n" for each in project.get("dependencies", []))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))


def install(site: Path, plugin: str, source: str, *, distribution: str = "", version: str = "1.2") -> None:
    """Writes ``<distribution>_plugin.py`` below ``site``, and the metadata of a package whose entry point names it."""
    distribution = distribution or f"{plugin}-moe"
    name = distribution.replace("-", "_")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}_plugin.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nRead me.\n")
    (info / "entry_points.txt").write_text(f"[moekit]\n{plugin} = {name}_plugin\n")
