"""``load`` makes a valid spec of a recipe's name, a file, a mapping, a config or a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from moekit.registry import Registry, current
from moekit.spec.composing import compose
from moekit.spec.fields import Spec
from moekit.spec.intake import plain_tree
from moekit.spec.layers import read_layers
from moekit.spec.merging import Merged
from moekit.spec.places import Keys, Report, found, reject
from moekit.spec.recipe import Recipe

OneSource = str | os.PathLike[str] | Mapping[str, Any] | DictConfig | Recipe
Source = OneSource | Sequence[OneSource] | ListConfig
"""What a spec can be loaded from."""


def load(source: Source, overrides: Iterable[str] = (), *, registry: Registry | None = None) -> Recipe:
    """A recipe, composed with everything that it extends; interpolations are resolved and every option is checked.

    Args:
        source: the name of a recipe (``deepseek_v3``), a file (``my.yaml``), a mapping, an OmegaConf config, a loaded
            recipe, or a list of these, each merged over the one before.
        overrides: ``path.to.option=value`` strings, merged by the same rules as files.
        registry: the recipes and components (default: those of the installed plugins).

    Raises:
        SpecError: with every mistake found.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if isinstance(source, Recipe) and not overrides:
        return source
    registry = current() if registry is None else registry
    layers, name = read_layers(source, overrides, registry)
    merged = Merged(registry, layers)
    _check_requires(merged, registry)
    recipe = compose(merged, Recipe, registry)
    assert isinstance(recipe, Recipe)
    recipe = recipe if recipe.name or not name else replace(recipe, name=name)
    _check_with_plugins(recipe, registry)
    return recipe


def validate(source: Source, overrides: Iterable[str] = (), *, registry: Registry | None = None) -> None:
    """Checks a spec as ``load`` does, and returns nothing.

    Raises:
        SpecError: with every mistake found.
    """
    load(source, overrides, registry=registry)


def component_spec(kind: str, node: str | Mapping[str, Any] | DictConfig, *, registry: Registry | None = None) -> Spec:
    """The spec of one component: ``component_spec("router", {"use": "topk", "top_k": 2})``.

    Args:
        kind: ``router``, ``expert``, ``balancer``, ...
        node: what a spec file has in such a slot.
        registry: the components (default: those of the installed plugins).

    Raises:
        SpecError: with every mistake found.
        UnknownName: there is no such kind.
    """
    registry = current() if registry is None else registry
    of = registry.kind(kind)
    tree = plain_tree({"use": node} if isinstance(node, str) else node, registry=registry)
    if not isinstance(tree.data, dict):
        expected, listing = f"{{use: <{of.name}>, ...}}", f"moekit ls {of.plural}"
        reject(f"{of.name}: {found(tree.data)} is not a component", expected=expected, list_with=listing)
    return compose(Merged(registry, [tree]), of.name, registry)


def _check_with_plugins(recipe: Recipe, registry: Registry) -> None:
    """Rejects a recipe in which the hook ``moekit_recipe_loaded`` of a plugin finds conflicts.

    Raises:
        SpecError: with every conflict.
    """
    report = Report()
    for plugin, said in registry.call("moekit_recipe_loaded", {"recipe": recipe}):
        for sentence in said or ():
            report.add((), f"{sentence} (plugin '{plugin.name}')")
    report.raise_if_any()


def _check_requires(layers: Merged, registry: Registry) -> None:
    """Rejects a spec whose plugins are missing or have another version, before anything that depends on them is read.

    Raises:
        SpecError: with every requirement that is not met.
    """
    wanted: Any = OmegaConf.to_container(layers.tree).get("requires")  # type: ignore[union-attr]
    if not isinstance(wanted, dict):
        return  # composing reports it
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    plugins = {plugin.name: plugin for plugin in registry.plugins}
    report = Report(layers.places)
    for name, versions in wanted.items():
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
