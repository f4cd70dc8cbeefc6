"""``Component``: what a plugin offers under one name. Torch-free, so that listing and validating are fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.errors import PluginError
from moekit.spec.fields import Spec
from moekit.spec.recipe import Recipe

API_VERSION = 1
"""Version of the plugin API. A plugin states the version that it was written for: ``MOEKIT_API = 1``."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One named thing that a plugin offers.

    Args:
        name: the name after ``use:`` in a spec.
        spec: the frozen dataclass of its options, a subclass of the base of its kind.
        target: the class or function that builds it, as ``"package.module:Class"`` (imported when built) or itself.
            For a recipe: the path of its YAML file.
        summary: one line for ``moekit ls``.
        paper: the source of the idea.
        year: of a recipe: the year of its paper; 0 if it names none.
        trains: of a recipe: whether it has data to train on. The others serve to read and to count parameters.
        plugin: name of the plugin that offers it; set when the plugin is loaded.
    """

    name: str
    spec: type[Spec]
    target: str | Callable[..., Any]
    summary: str
    paper: str = ""
    year: int = 0
    trains: bool = True
    plugin: str = ""

    @property
    def kind(self) -> str:
        """Its kind (``"router"``, ``"expert"``, ...), which its spec class determines."""
        return self.spec.kind

    @property
    def full_name(self) -> str:
        """``plugin/name``: unambiguous where two plugins offer the same name."""
        return f"{self.plugin}/{self.name}" if self.plugin else self.name

    def load(self) -> Any:
        """The target, imported if necessary.

        Raises:
            PluginError: the target cannot be imported, or the component is a recipe.
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
    """Every ``*.yaml`` file below ``folder`` as a recipe, named by its relative path without the suffix.

    Summary, paper and data are found line by line, also in the files of the folder that a recipe extends, because
    parsing YAML would make listing slow.
    """
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    heads = {name: _head_of(path) for name, path in paths.items()}
    for name, path in paths.items():
        own, whole = heads[name], _with_bases(name, heads)
        year = whole.get("year", "")
        yield Component(
            name=name,
            spec=Recipe,
            target=str(path),
            summary=own.get("summary", ""),
            paper=" ".join(filter(None, [whole.get("title", "").partition(":")[0], year])),
            year=int(year) if year.isdecimal() else 0,
            trains=whole.get("data", "null").partition("#")[0].strip() not in ("null", "~"),
        )


def _head_of(path: Path) -> dict[str, str]:
    """The summary, ``extends``, title and year of the paper, and data in a recipe's file."""
    head: dict[str, str] = {}
    outer = ""
    with path.open(encoding="utf-8") as file:
        for line in file:
            key, colon, value = line.partition(":")
            if not colon:
                continue
            inner = key.startswith((" ", "#"))
            outer = outer if inner else key
            if key in ("summary", "extends", "data") or (outer == "paper" and key.strip() in ("title", "year")):
                head.setdefault(key.strip(), value.strip().strip("\"'"))
    return head


def _with_bases(name: str, heads: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The head of a recipe, completed by the heads of the recipes that it extends."""
    whole: dict[str, str] = {}
    waiting, seen = [name], set[str]()
    while waiting:
        here = waiting.pop(0)
        if here in seen or here not in heads:
            continue
        seen.add(here)
        whole = {**heads[here], **whole}
        waiting += [base.strip(" '\"") for base in heads[here].get("extends", "").strip("[]").split(",")]
    return whole
