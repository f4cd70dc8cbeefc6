"""What a recipe's file says about itself at the top: for lists of recipes, which need not compose every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moekit.component import RecipeFile
from moekit.errors import MoekitError
from moekit.registry import Registry
from moekit.spec.yaml_text import read


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a recipe.

    Attributes:
        summary: one line; empty if it has none of its own.
        paper: the short title and year of its paper, which it may inherit; empty if it has none.
        year: of its paper; 0 if unknown.
        trains: whether it has data to train on. The others serve to read and to count parameters.
    """

    summary: str
    paper: str
    year: int
    trains: bool


def head_of(recipe: RecipeFile, registry: Registry) -> Head:
    """The head of ``recipe``, completed by what it extends. A file that cannot be read says nothing."""
    whole: dict[str, Any] = {}
    paper: dict[str, Any] = {}
    own = _top(recipe.path)
    waiting, seen = [(recipe.path, own)], {recipe.path}
    while waiting:
        path, top = waiting.pop(0)
        whole = {**top, **whole}
        if isinstance(top.get("paper"), Mapping):
            paper = {**top["paper"], **paper}
        extends = top.get("extends", [])
        for name in extends if isinstance(extends, list) else [extends]:
            base = _base(str(name), path, registry)
            if base is not None and base not in seen:
                seen.add(base)
                waiting.append((base, _top(base)))
    year = paper.get("year")
    short = str(paper.get("title", "")).partition(":")[0]
    return Head(
        summary=str(own.get("summary", "")),
        paper=" ".join(filter(None, [short, str(year or "")])),
        year=year if isinstance(year, int) else 0,
        trains=whole.get("data") is not None,
    )


def _top(path: Path) -> Mapping[str, Any]:
    try:
        data = read(path.read_text(encoding="utf-8"), path.name).data
    except (OSError, ValueError, MoekitError):
        return {}
    return data if isinstance(data, Mapping) else {}


def _base(name: str, path: Path, registry: Registry) -> Path | None:
    if name.endswith((".yaml", ".yml")):
        return path.parent / name
    try:
        return registry.recipe(name).path
    except MoekitError:
        return None
