"""Recipes: YAML files of papers, and the bases that they extend."""

from __future__ import annotations

from pathlib import Path

from moekit.component import Component, recipes_in
from moekit.hookspecs import hookimpl

MOEKIT_API = 1


@hookimpl
def moekit_recipes() -> list[Component]:
    """Every YAML file of this folder."""
    return list(recipes_in(Path(__file__).parent))
