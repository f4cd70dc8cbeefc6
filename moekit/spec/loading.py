"""``load`` makes a valid spec of a recipe's name, a file, a mapping or a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from moekit.registry import current
from moekit.spec.composing import compose
from moekit.spec.dumping import to_plain
from moekit.spec.fields import Spec
from moekit.spec.layers import compose_layers, open_source, plain_tree
from moekit.spec.places import Keys, Place, Report, Tree
from moekit.spec.recipe import Recipe

Source = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""What a spec can be loaded from."""


def load(source: Source, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe, composed with everything that it extends; interpolations are resolved and every option is checked.

    Args:
        source: the name of a recipe (``deepseek_v3``), a file (``my.yaml``), a mapping, or a loaded recipe.
        overrides: ``path.to.option=value`` strings, merged by the same rules as files.

    Raises:
        SpecError: with every mistake found.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if isinstance(source, Recipe) and not overrides:
        return source
    top = open_source(to_plain(source) if isinstance(source, Recipe) else source)
    tree = compose_layers(top, overrides)
    if "requires" in tree.data:
        _check_requires(tree)
    recipe = compose(tree, "recipe")
    assert isinstance(recipe, Recipe)
    if not recipe.name and top.path is not None:
        recipe = replace(recipe, name=PurePath(top.label).stem)
    _check_with_plugins(recipe)
    return recipe


def validate(source: Source, overrides: Iterable[str] = ()) -> None:
    """Checks a spec as ``load`` does, and returns nothing.

    Raises:
        SpecError: with every mistake found.
    """
    load(source, overrides)


def component_spec(kind: str, node: str | Mapping[str, Any]) -> Spec:
    """The spec of one component: ``component_spec("router", {"use": "topk", "top_k": 2})``.

    Args:
        kind: ``router``, ``expert``, ``balancer``, ...
        node: what a spec file has in such a slot.

    Raises:
        SpecError: with every mistake found.
        UnknownName: there is no such kind.
    """
    places: dict[Keys, Place] = {}
    return compose(Tree(plain_tree(node, (), places), places), current().kind(kind).name)


def _check_with_plugins(recipe: Recipe) -> None:
    """Rejects a recipe in which the hook ``moekit_recipe_loaded`` of a plugin finds conflicts.

    Raises:
        SpecError: with every conflict.
    """
    report = Report()
    for plugin, said in current().call("moekit_recipe_loaded", {"recipe": recipe}):
        for sentence in said or ():
            report.add((), f"{sentence} (plugin '{plugin.name}')")
    report.raise_if_any()


def _check_requires(tree: Tree) -> None:
    """Rejects a spec whose plugins are missing or have another version, before anything that depends on them is read.

    Raises:
        SpecError: with every requirement that is not met.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    wanted = tree.data["requires"]
    plugins = {plugin.name: plugin for plugin in current().plugins}
    report = Report(tree.places)
    for name, versions in wanted.items() if isinstance(wanted, dict) else ():
        if not isinstance(versions, str):
            continue  # composing reports it
        at: Keys = ("requires", name)
        try:
            specifier = SpecifierSet(versions)
        except InvalidSpecifier:
            report.add(at, f"'{versions}' is not a version requirement", expected="versions, such as '>=1.2,<2'")
            continue
        plugin = plugins.get(name)
        if plugin is None:
            why = ", which is not installed"
        elif plugin.error is not None:
            why = f", which failed to load: {plugin.error}"
        elif not plugin.version:
            why = f" {versions}, which states no version"
        elif specifier.contains(plugin.version, prereleases=True):
            continue
        else:
            why = f" {versions}; version {plugin.version} is installed"
        report.add(at, f"this spec requires plugin '{name}'{why}", list_with="moekit plugins")
    report.raise_if_any()
