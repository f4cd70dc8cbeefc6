"""What a recipe's file says about itself at the top: for lists of recipes, which need not compose every one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from moekit.component import RecipeFile
from moekit.errors import SpecError
from moekit.registry import Registry
from moekit.spec.layers import read_layers


class Head(NamedTuple):
    """The head of a recipe.

    Attributes:
        summary: one line; empty if it has none of its own.
        paper: the short title and year of its paper, which it may inherit; empty if it has none.
        year: of its paper; 0 if unknown.
        trains: whether it has data to train on. The others serve to read and to count parameters.
    """

    summary: str = ""
    paper: str = ""
    year: int = 0
    trains: bool = False


def head_of(recipe: RecipeFile, registry: Registry) -> Head:
    """The head of ``recipe``, completed by what it extends. A recipe that cannot be read says nothing."""
    try:
        trees, _ = read_layers(recipe.full_name, (), registry)
    except SpecError:
        return Head()
    whole: dict[str, Any] = {}
    paper: dict[str, Any] = {}
    for tree in trees:
        whole |= tree.data
        if isinstance(tree.data.get("paper"), Mapping):
            paper |= tree.data["paper"]
    year = paper.get("year")
    short = str(paper.get("title", "")).partition(":")[0]
    return Head(
        summary=str(trees[-1].data.get("summary", "")),
        paper=" ".join(filter(None, [short, str(year or "")])),
        year=year if isinstance(year, int) else 0,
        trains=whole.get("data") is not None,
    )
