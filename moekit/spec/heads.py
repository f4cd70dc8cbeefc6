"""What the file of a recipe says at its top: for lists of recipes, which compose none and import no OmegaConf."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from moekit.component import RecipeFile
from moekit.errors import MoekitError
from moekit.registry import Registry
from moekit.spec.yaml_text import read

_read = lru_cache(read)  # by the text: many recipes extend the same few


class Head(NamedTuple):
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
    tops: dict[Path, Mapping[str, Any]] = {}
    own = _gather(recipe, registry, tops)
    whole: dict[str, Any] = {}
    paper: dict[str, Any] = {}
    for top in (*tops.values(), own):
        whole |= top
        paper |= top["paper"] if isinstance(top.get("paper"), Mapping) else {}
    year = paper.get("year")
    short = str(paper.get("title", "")).partition(":")[0]
    return Head(
        summary=str(own.get("summary", "")),
        paper=" ".join(filter(None, [short, str(year or "")])),
        year=year if isinstance(year, int) else 0,
        trains=whole.get("data") is not None,
    )


def _gather(file: RecipeFile, registry: Registry, tops: dict[Path, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The top of a file. Adds those that it extends to ``tops``, the lowest first."""
    try:
        data = _read(file.path.read_text(encoding="utf-8"), file.path.name).data
    except (OSError, ValueError):
        return {}
    top: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    names = top.get("extends") or []
    for name in map(str, names if isinstance(names, list) else [names]):
        try:
            if name.endswith((".yaml", ".yml")):
                base = dataclasses.replace(file, path=file.path.parent / name)
            else:
                base = registry.recipe(name, home=file.plugin)
        except MoekitError:
            continue
        if base.path not in tops:
            tops[base.path] = {}  # so that a circle ends
            top_of_base = _gather(base, registry, tops)
            del tops[base.path]
            tops[base.path] = top_of_base
    return top
