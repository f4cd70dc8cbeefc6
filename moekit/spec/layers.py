"""The layers of a spec: a recipe, file, mapping or config, what it extends, and overrides on top."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from moekit.errors import PluginError, SpecError, UnknownName
from moekit.files import read_regular
from moekit.registry import Registry
from moekit.spec.fields import Spec
from moekit.spec.intake import plain_tree
from moekit.spec.merging import Merged, nested
from moekit.spec.places import COMMAND_LINE, Keys, Place, Report, Tree, check_size, found, reject, show
from moekit.spec.references import is_reference
from moekit.spec.yaml_text import read

LARGEST_FILE = 10_000_000  # bytes
SCHEMA = 1
"""Version of the spec format."""

CONTENT = "a mapping of options: 'model:', 'data:', ..."
"""What a spec is, in messages."""


class Layer(NamedTuple):
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
        source: a recipe, the name of one, a YAML file, a run's folder, a mapping, or a list of these, each over the one
            before.
        overrides: ``path.to.option=value``; they are over all.
        registry: the recipes that can be named.

    Raises:
        SpecError: a source cannot be read or has another spec format, ``extends`` goes in a circle, or an override
            is malformed.
    """
    if OmegaConf.is_list(source):
        source = OmegaConf.to_container(source)
    layers: dict[str, Layer] = {}
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


def _open_source(source: Any, index: int, registry: Registry) -> Layer:
    if isinstance(source, Mapping | Spec):
        tree = plain_tree(source, registry=registry)
        if not isinstance(tree.data, dict):  # a DictConfig that is null or left open
            reject(f"the given config is {found(tree.data)}", expected=CONTENT)
        return Layer(tree, f"the given mapping {index or ''}".strip(), None)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and _is_file_name(source)):
        return _open_file(Path(source), os.fspath(source))
    if not isinstance(source, str):
        reject(f"{found(source)} is not a spec", expected="a recipe's name, a YAML file, a mapping, or a list of them")
    return _open_recipe(source, registry)


def _gather(layer: Layer, chain: tuple[Layer, ...], done: dict[str, Layer], registry: Registry) -> None:
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


def _open_parent(layer: Layer, name: object, at: Keys, place: Place, registry: Registry) -> Layer:
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


def _open_recipe(name: str, registry: Registry, at: Keys = (), place: Place | None = None) -> Layer:
    try:
        recipe = registry.recipe(name, home=place.plugin if place else "")
    except UnknownName as error:
        if (of_run := Path(name) / "spec.yaml").is_file():  # a run's folder: its recipe
            return _open_file(of_run, os.fspath(of_run), at, place)
        file = f"{name}.yaml"  # a file without its ending
        near = file if Path(file).is_file() else error.problem.nearest
        notes = error.problem.notes
        if name and Path(name).exists():
            what = "folder" if Path(name).is_dir() else "file"
            notes += (f"'{name}' is a {what}; the file of a recipe ends in .yaml",)
        problem = replace(error.problem, at=show(at), source=str(place or ""), nearest=near, notes=notes)
        raise SpecError([problem]) from None
    except PluginError as error:
        reject(str(error), at=at, place=place)
    return _open_file(recipe.path, f"{recipe.name}.yaml", plugin=recipe.plugin)


def _open_file(path: Path, label: str, at: Keys = (), place: Place | None = None, *, plugin: str = "") -> Layer:
    try:
        raw = read_regular(path, LARGEST_FILE).removeprefix(BOM_UTF8)
    except OSError as error:
        reject(f"cannot read {label}: {error.strerror}", at=at, place=place, expected="a YAML file")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reject("not UTF-8 text", place=Place(label, raw.count(b"\n", 0, error.start) + 1))
    tree = read(text, label)
    if tree.data is None:
        reject("the file is empty", place=Place(label), expected=CONTENT)
    if not isinstance(tree.data, dict):
        reject(f"the file holds {found(tree.data)}", place=Place(label), expected=CONTENT)
    places = {key: each._replace(plugin=plugin) for key, each in tree.places.items()} if plugin else tree.places
    return Layer(Tree(tree.data, places), label, path)


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
            new = Tree(data, {**around, **tree.places})
            if not out or _crosses_reference(out[-1].plain().data, data):
                out.append(Merged(registry))
            out[-1].lay(new)
    report.raise_if_any()
    return [merged.plain() for merged in out]


def _crosses_reference(base: Any, over: Any) -> bool:
    """Whether ``over`` has a mapping where ``base`` has an interpolation."""
    if not isinstance(over, dict):
        return False
    return is_reference(base) or (
        isinstance(base, dict) and any(_crosses_reference(base.get(k), over[k]) for k in over)
    )
