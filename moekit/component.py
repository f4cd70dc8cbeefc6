"""Component: what a plugin offers under one name. Torch-free, so that listing and validating are fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.errors import PluginError
from moekit.spec.fields import Spec
from moekit.spec.recipe import Recipe

API_VERSION = 1
"""Version of the plugin API. A plugin module states the one it was written for: ``MOEKIT_API = 1``."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One named thing that a plugin offers.

    Args:
        name: what a spec says after ``use:``.
        spec: the frozen dataclass that declares its options, a subclass of its kind's base.
        target: what builds it, as ``"package.module:Class"`` (imported when built), or the class itself.
            For a recipe: the path of its YAML file.
        summary: one line for ``moekit ls``.
        paper: where the idea comes from.
        plugin: id of the plugin that offers it; set by the registry.
    """

    name: str
    spec: type[Spec]
    target: str | Callable[..., Any]
    summary: str
    paper: str = ""
    plugin: str = ""

    @property
    def kind(self) -> str:
        """Its kind (``"router"``, ``"expert"``, ...), told by its spec class."""
        return self.spec.kind

    @property
    def full_name(self) -> str:
        """``plugin/name``: unambiguous when two plugins offer one name."""
        return f"{self.plugin}/{self.name}" if self.plugin else self.name

    def load(self) -> Any:
        """The class to build, imported now.

        Raises:
            PluginError: the target cannot be imported, or is the file of a recipe.
        """
        if self.spec is Recipe:
            raise PluginError(f"recipe '{self.full_name}' is a file; read it with moekit.load({self.name!r})")
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"{self.kind} '{self.full_name}': cannot import its target '{self.target}'\n"
                f"  {type(error).__name__}: {error}"
            ) from error


def recipes_in(folder: Path) -> Iterator[Component]:
    """Every ``*.yaml`` below ``folder`` as a recipe named by its relative path without the suffix.

    The summary is what the file says after ``summary:`` at its top level, found line by line: listing parses no YAML.
    """
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        yield Component(name=name, spec=Recipe, target=str(path), summary=_summary_of(path))


def _summary_of(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("summary:"):
                return line.removeprefix("summary:").strip().strip("\"'")
    return ""
