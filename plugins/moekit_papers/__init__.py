"""Recipes: YAML files of papers, and the bases that they extend."""

from __future__ import annotations

from pathlib import Path

from moekit.component import RecipeFile, recipes_in
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_recipes() -> list[RecipeFile]:
    """Every YAML file of this folder."""
    return list(recipes_in(Path(__file__).parent))
