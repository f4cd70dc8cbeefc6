"""``load`` makes a valid spec of a recipe's name, a file, a mapping, a config or a recipe.

First it reads the layers of the spec: what is given, what that extends, and overrides on top.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from moekit.component import RecipeFile
from moekit.errors import MoekitError, PluginError, SpecError, UnknownName
from moekit.files import read_regular
from moekit.registry import Registry, current
from moekit.spec.composing import compose
from moekit.spec.dumping import plain_tree
from moekit.spec.fields import Spec
from moekit.spec.merging import Merged, nested
from moekit.spec.places import COMMAND_LINE, Keys, Place, Report, Tree, check_size, found, reject, show
from moekit.spec.recipe import Recipe
from moekit.spec.references import is_reference
from moekit.spec.yaml_text import read

OneSource = str | os.PathLike[str] | Mapping[str, Any] | DictConfig | Recipe
Source = OneSource | Sequence[OneSource] | ListConfig
"""What a spec can be loaded from."""

LARGEST_FILE = 10_000_000  # bytes
SCHEMA = 1
"""Version of the spec format."""

CONTENT = "a mapping of options: 'model:', 'data:', ..."
"""What a spec is, in messages."""


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


class Head(NamedTuple):
    """What the file of a recipe says at its top, for lists of recipes.

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
    """The head of a recipe, completed by what it extends. A recipe that cannot be read says nothing."""
    layers: dict[str, _Layer] = {}
    try:
        _gather(_open_file(recipe.path, recipe.name, plugin=recipe.plugin), (), layers, registry)
    except MoekitError:
        return Head()
    tops = [layer.tree.data for layer in layers.values()]
    paper: dict[str, Any] = {}
    for top in tops:
        paper |= top["paper"] if isinstance(top.get("paper"), Mapping) else {}
    year = paper.get("year")
    short = str(paper.get("title", "")).partition(":")[0]
    return Head(
        summary=str(tops[-1].get("summary", "")),
        paper=" ".join(filter(None, [short, str(year or "")])),
        year=year if isinstance(year, int) else 0,
        trains={key: item for top in tops for key, item in top.items()}.get("data") is not None,
    )


class _Layer(NamedTuple):
    """One file or mapping of a spec, before merging; ``path`` is None for a mapping."""

    tree: Tree
    label: str
    path: Path | None

    @property
    def key(self) -> str:
        """Identifies the layer: the absolute path of its file."""
        return str(self.path.resolve()) if self.path else self.label


def read_layers(source: Any, overrides: Iterable[str], registry: Registry) -> tuple[list[Tree], str]:
    """The layers of a spec, the lowest first, without ``extends``; and the name that it has if it states none.

    Args:
        source: a recipe, the name of one, a YAML file, a mapping, or a list of these, each over the one before.
        overrides: ``path.to.option=value``; they are over all.
        registry: the recipes that can be named.

    Raises:
        SpecError: a source cannot be read or has another spec format, ``extends`` goes in a circle, or an override
            is malformed.
    """
    if OmegaConf.is_list(source):
        source = OmegaConf.to_container(source)
    layers: dict[str, _Layer] = {}
    for i, one in enumerate(source if isinstance(source, list | tuple) else [source]):
        _gather(_open_source(one, i, registry), (), layers, registry)
    trees = [
        Tree({k: v for k, v in one.tree.data.items() if k != "extends"}, one.tree.places) for one in layers.values()
    ]
    named = [one.path.stem for one in layers.values() if one.path]
    over = parse_overrides(overrides, registry)
    for tree in over:
        _check_schema(tree)
    return [*trees, *over], named[-1] if named else ""


def _open_source(source: Any, index: int, registry: Registry) -> _Layer:
    if isinstance(source, Mapping | Spec):
        tree = plain_tree(source, registry=registry)
        if not isinstance(tree.data, dict):  # a DictConfig that is null or left open
            reject(f"the given config is {found(tree.data)}", expected=CONTENT)
        return _Layer(tree, f"the given mapping {index or ''}".strip(), None)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _is_file_name(source)):
        return _open_file(Path(source), os.fspath(source))
    if not isinstance(source, str):
        reject(f"{found(source)} is not a spec", expected="a recipe's name, a YAML file, a mapping, or a list of them")
    return _open_recipe(source, registry)


def _gather(layer: _Layer, chain: tuple[_Layer, ...], done: dict[str, _Layer], registry: Registry) -> None:
    """Adds ``layer`` to ``done``, after everything that it extends. A file reached twice keeps its first place."""
    if layer.key in done:
        return
    _check_schema(layer.tree)
    chain = (*chain, layer)
    names = layer.tree.data.get("extends")
    for i, name in enumerate(names if isinstance(names, list) else [] if names is None else [names]):
        at: Keys = ("extends", i) if isinstance(names, list) else ("extends",)
        place = layer.tree.places.get(at, Place(""))
        parent = _open_parent(layer, name, at, place, registry)
        for i_seen, seen in enumerate(chain):
            if seen.key == parent.key:
                circle = " -> ".join(link.label for link in (*chain[i_seen:], parent))
                reject(f"extends goes in a circle: {circle}", at=at, place=place)
        _gather(parent, chain, done, registry)
    done[layer.key] = layer


def _open_parent(layer: _Layer, name: object, at: Keys, place: Place, registry: Registry) -> _Layer:
    if not isinstance(name, str) or not name:
        reject(
            f"extends: {found(name)} is not a name", at=at, place=place, expected="a recipe, a file, or a list of them"
        )
    if _is_file_name(name):
        folder = layer.path.parent if layer.path else Path()
        label = os.path.normpath(os.path.join(os.path.dirname(layer.label) if layer.path else "", name))
        return _open_file(folder / name, label, at, place, plugin=place.plugin)
    return _open_recipe(name, registry, at, place)


def _is_file_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _open_recipe(name: str, registry: Registry, at: Keys = (), place: Place | None = None) -> _Layer:
    try:
        recipe = registry.recipe(name, home=place.plugin if place else "")
    except UnknownName as error:
        files = (f"{name}.yaml", os.path.join(name, "spec.yaml"))  # a file without its ending; a run's folder
        near = next((file for file in files if Path(file).is_file()), error.problem.nearest)
        notes = error.problem.notes
        if name and Path(name).exists():
            what = "folder" if Path(name).is_dir() else "file"
            notes += (f"'{name}' is a {what}; the file of a recipe ends in .yaml",)
        problem = replace(error.problem, at=show(at), source=str(place or ""), nearest=near, notes=notes)
        raise SpecError([problem]) from None
    except PluginError as error:
        reject(str(error), at=at, place=place)
    return _open_file(recipe.path, f"{recipe.name}.yaml", plugin=recipe.plugin)


def _open_file(path: Path, label: str, at: Keys = (), place: Place | None = None, *, plugin: str = "") -> _Layer:
    try:
        raw = read_regular(path, LARGEST_FILE).removeprefix(BOM_UTF8)
    except OSError as error:
        reject(f"cannot read {label}: {error.strerror}", at=at, place=place, expected="a YAML file")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reject("not UTF-8 text", place=Place(label, raw.count(b"\n", 0, error.start) + 1))
    tree = _read(text, label, plugin)
    if tree.data is None:
        reject("the file is empty", place=Place(label), expected=CONTENT)
    if not isinstance(tree.data, dict):
        reject(f"the file holds {found(tree.data)}", place=Place(label), expected=CONTENT)
    return _Layer(tree, label, path)


@lru_cache(256)
def _read(text: str, label: str, plugin: str) -> Tree:
    """The tree of a file, which many recipes extend: it is read once and not changed."""
    tree = read(text, label)
    return Tree(tree.data, {key: each._replace(plugin=plugin) for key, each in tree.places.items()})


def _check_schema(tree: Tree) -> None:
    schema = tree.data.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        place = tree.places.get(("schema",))
        reject(f"written in spec format {schema}; this moekit reads format {SCHEMA}", at=("schema",), place=place)


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
