"""``load`` makes a valid spec of a recipe's name, a file, a mapping, a config or a recipe.

Its layers are what is given, what that extends, and overrides on top.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moekit.registry import Registry, current
from moekit.spec.composing import compose
from moekit.spec.dumping import plain_tree
from moekit.spec.fields import Spec
from moekit.spec.layers import CONTENT, Layer, check_schema, extended, open_source
from moekit.spec.merging import Merged, nested
from moekit.spec.places import COMMAND_LINE, Keys, Place, Report, Tree, check_size, found, reject
from moekit.spec.recipe import Recipe
from moekit.spec.references import escape, is_reference
from moekit.spec.yaml_text import read

OneSource = str | Path | Mapping[str, Any] | Recipe
Source = OneSource | Sequence[OneSource]
"""What a spec can be loaded from. A ``DictConfig`` is a mapping too, a ``ListConfig`` a sequence.

Lightning's command line parses by these types. ``os.PathLike`` in the place of ``Path`` would make mappings strings.
"""


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
    if name and merged.data.get("name") in (None, ""):
        merged.data["name"] = escape(name)
    recipe = compose(merged, Recipe, registry)
    assert isinstance(recipe, Recipe)
    report = Report()
    for plugin, said in registry.call("moekit_recipe_loaded", {"recipe": recipe}):
        for sentence in said or ():
            report.add((), f"{sentence} (plugin '{plugin.name}')")
    report.raise_if_any()
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


def read_layers(source: Any, overrides: Iterable[str], registry: Registry) -> tuple[list[Tree], str]:
    """The layers of a spec, the lowest first, without ``extends``; and the name that it has if it states none.

    Args:
        source: a recipe, the name of one, a YAML file, a run's folder, a mapping, or a list of these, each over the
            one before.
        overrides: ``path.to.option=value``; they are over all.
        registry: the recipes that can be named.

    Raises:
        SpecError: a source cannot be read or has another spec format, ``extends`` goes in a circle, or an override
            is malformed.
    """
    if OmegaConf.is_list(source):
        source = OmegaConf.to_container(source)
    sources = source if isinstance(source, list | tuple) else [source]
    layers = extended([_layer_of(one, i, registry) for i, one in enumerate(sources)], registry)
    trees = [Tree({k: v for k, v in one.tree.data.items() if k != "extends"}, one.tree.places) for one in layers]
    named = [one.path.stem for one in layers if one.path]
    over = parse_overrides(overrides, registry)
    for tree in over:
        check_schema(tree)
    return [*trees, *over], named[-1] if named else ""


def _layer_of(source: Any, index: int, registry: Registry) -> Layer:
    if isinstance(source, Mapping | Spec):
        tree = plain_tree(source, registry=registry)
        if not isinstance(tree.data, dict):  # a DictConfig that is null or left open
            reject(f"the given config is {found(tree.data)}", expected=CONTENT)
        label = f"the given mapping {index or ''}".strip()
        return Layer(tree, label, None, label)
    if not isinstance(source, str | os.PathLike):
        reject(f"{found(source)} is not a spec", expected="a recipe's name, a YAML file, a mapping, or a list of them")
    return open_source(source, registry)


def parse_overrides(overrides: Iterable[str], registry: Registry) -> list[Tree]:
    """``a.b.c=value`` strings as layers, mostly one; of two overrides of one path the later wins.

    They are merged with each other before they are merged over a recipe, so that ``router.use`` may come after
    ``router.top_k``. An override of a part of an earlier ``a=${...}`` begins another layer.

    Raises:
        SpecError: with every override that is malformed.
    """
    report = Report()
    out: list[Merged] = []
    place = Place(COMMAND_LINE)
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            report.add((), f"override '{text}' is malformed", expected="path.to.option=value", place=place)
        elif keys[0] == "extends":
            expected = "a file that extends the recipe"
            report.add(keys[:1], "extends cannot be set by an override", expected=expected, place=place)
        else:
            check_size(keys, 0, COMMAND_LINE)
            tree = read(value, COMMAND_LINE, lines=False, prefix=keys) if value.strip() else Tree("", {})
            data = nested(keys, tree.data)
            around: dict[Keys, Place] = {keys[:end]: place for end in range(1, len(keys) + 1)}
            if not out or _crosses_reference(out[-1].data, data):
                out.append(Merged(registry))
            out[-1].lay(Tree(data, {**around, **tree.places}))
    report.raise_if_any()
    return [Tree(merged.data, merged.places) for merged in out]


def _crosses_reference(base: Any, over: Any) -> bool:
    """Whether ``over`` has a mapping where ``base`` has an interpolation."""
    if not isinstance(over, dict):
        return False
    return is_reference(base) or (
        isinstance(base, dict) and any(_crosses_reference(base.get(k), over[k]) for k in over)
    )


def _check_requires(layers: Merged, registry: Registry) -> None:
    """Rejects a spec whose plugins are missing or have another version, before anything that depends on them is read.

    Raises:
        SpecError: with every requirement that is not met.
    """
    wanted = layers.data.get("requires")
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
