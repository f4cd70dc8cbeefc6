"""Makes one tree of the layers of a spec: a recipe or file, what it extends, and overrides on top."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moekit.errors import PluginError, SpecError, UnknownName
from moekit.files import read_regular
from moekit.registry import current
from moekit.spec.merging import merge
from moekit.spec.places import COMMAND_LINE, Keys, Place, Report, Tree, found, reject, show
from moekit.spec.yaml_text import read

LARGEST_FILE = 10_000_000  # bytes
SCHEMA = 1
"""Version of the spec format."""


@dataclass(frozen=True)
class Layer:
    """One file or mapping of a spec, before merging; ``path`` is None for a mapping."""

    tree: Tree
    label: str
    path: Path | None

    @property
    def key(self) -> str:
        """Identifies the layer: the absolute path of its file."""
        return str(self.path.resolve()) if self.path else self.label


def open_source(source: str | os.PathLike[str] | Mapping[str, Any]) -> Layer:
    """The layer that ``source`` names: a recipe, a YAML file, or a mapping.

    Raises:
        SpecError: no recipe has the name, or the file cannot be read or is not a mapping.
    """
    if isinstance(source, Mapping):
        places: dict[Keys, Place] = {}
        return Layer(Tree(plain_tree(source, (), places), places), "the given mapping", None)
    if isinstance(source, os.PathLike) or _is_file_name(source):
        return _open_file(Path(source), os.fspath(source))
    return _open_recipe(source)


def plain_tree(value: Any, path: Keys, places: dict[Keys, Place]) -> Any:
    """A copy of mappings, lists and specs as plain data; every path is added to ``places``.

    Raises:
        SpecError: a key is not text.
    """
    from moekit.spec.dumping import to_plain
    from moekit.spec.fields import Spec

    places[path] = Place("")
    if isinstance(value, Spec):
        value = to_plain(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                reject(f"key {key!r} is not text", at=path)
        return {key: plain_tree(item, (*path, key), places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_tree(item, (*path, i), places) for i, item in enumerate(value)]
    return value


def compose_layers(top: Layer, overrides: Iterable[str]) -> Tree:
    """The tree of ``top`` merged over everything that it extends, with ``overrides`` merged over ``top``.

    Raises:
        SpecError: a file cannot be read or has another spec format, ``extends`` goes in a circle, or an override
            is malformed.
    """
    layers: dict[str, Layer] = {}
    _gather(top, (), layers)
    tree = Tree({})
    for layer in layers.values():
        data = {key: value for key, value in layer.tree.data.items() if key != "extends"}
        tree = merge(tree, Tree(data, layer.tree.places))
    tree = merge(tree, parse_overrides(overrides))
    _check_schema(tree)
    return tree


def _gather(layer: Layer, chain: tuple[Layer, ...], done: dict[str, Layer]) -> None:
    """Adds ``layer`` to ``done``, after everything that it extends. A file reached twice keeps its first place."""
    if layer.key in done:
        return
    _check_schema(layer.tree)
    chain = (*chain, layer)
    names = layer.tree.data.get("extends")
    for i, name in enumerate(names if isinstance(names, list) else [] if names is None else [names]):
        at: Keys = ("extends", i) if isinstance(names, list) else ("extends",)
        place = layer.tree.places.get(at, Place(""))
        parent = _open_parent(layer, name, at, place)
        for i_seen, seen in enumerate(chain):
            if seen.key == parent.key:
                circle = " -> ".join(link.label for link in (*chain[i_seen:], parent))
                reject(f"extends goes in a circle: {circle}", at=at, place=place)
        _gather(parent, chain, done)
    done[layer.key] = layer


def _open_parent(layer: Layer, name: object, at: Keys, place: Place) -> Layer:
    if not isinstance(name, str) or not name:
        reject(
            f"extends: {found(name)} is not a name", at=at, place=place, expected="a recipe, a file, or a list of them"
        )
    if _is_file_name(name):
        folder = layer.path.parent if layer.path else Path()
        label = os.path.normpath(os.path.join(os.path.dirname(layer.label) if layer.path else "", name))
        return _open_file(folder / name, label, at, place)
    return _open_recipe(name, at, place)


def _is_file_name(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _open_recipe(name: str, at: Keys = (), place: Place | None = None) -> Layer:
    try:
        recipe = current().recipe(name)
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
    return _open_file(recipe.path, f"{recipe.name}.yaml")


def _open_file(path: Path, label: str, at: Keys = (), place: Place | None = None) -> Layer:
    try:
        raw = read_regular(path, LARGEST_FILE)
    except OSError as error:
        reject(f"cannot read {label}: {error.strerror}", at=at, place=place, expected="a YAML file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reject("not UTF-8 text", place=Place(label, raw.count(b"\n", 0, error.start) + 1))
    tree = read(text, label)
    if tree.data is None:
        reject("the file is empty", place=Place(label), expected="a mapping of options: 'model:', 'data:', ...")
    if not isinstance(tree.data, dict):
        reject(
            f"the file holds {found(tree.data)}",
            place=Place(label),
            expected="a mapping of options: 'model:', 'data:', ...",
        )
    return Layer(tree, label, path)


def _check_schema(tree: Tree) -> None:
    schema = tree.data.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        place = tree.places.get(("schema",))
        reject(f"written in spec format {schema}; this moekit reads format {SCHEMA}", at=("schema",), place=place)


def parse_overrides(overrides: Iterable[str]) -> Tree:
    """``a.b.c=value`` strings as one tree; of two overrides of one path the later wins.

    Raises:
        SpecError: with every override that is malformed.
    """
    report = Report()
    out = Tree({})
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            report.add(
                (), f"override '{text}' is malformed", expected="path.to.option=value", place=Place(COMMAND_LINE)
            )
            continue
        if keys[0] == "extends":
            report.add(
                ("extends",),
                "extends cannot be set by an override",
                expected="a file that extends the recipe",
                place=Place(COMMAND_LINE),
            )
            continue
        tree = read(value, COMMAND_LINE, lines=False, prefix=keys) if value.strip() else Tree("")
        data = tree.data
        for key in reversed(keys):
            data = {key: data}
        around: dict[Keys, Place] = {keys[:end]: Place(COMMAND_LINE) for end in range(1, len(keys) + 1)}
        out = merge(out, Tree(data, {**around, **tree.places}))
    report.raise_if_any()
    return out
