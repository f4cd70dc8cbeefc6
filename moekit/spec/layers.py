"""The layers of a spec: files and what they extend, merged as plain data. A list of recipes needs no OmegaConf.

* Two mappings are merged key by key; everything else is replaced whole, lists too. So does OmegaConf.
* A node whose ``use`` changes is replaced whole, so that it keeps no option of the old component. Text is the short
  form of such a node: ``router: topk`` is ``router: {use: topk}``.
* ``null`` stays in the tree in place of the lower value; planning reads it as *absent*.
* A mapping over ``${...}`` is merged over a copy of what that refers to once all layers are there.
"""

from __future__ import annotations

import copy
import os
import time
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from moekit.component import RecipeFile
from moekit.errors import MoekitError, PluginError, SpecError, UnknownName
from moekit.files import read_regular
from moekit.registry import Registry
from moekit.spec.tree import LEFT_OPEN, Keys, Place, Tree, found, is_reference, read, reject, show

LARGEST_FILE = 10_000_000  # bytes
SCHEMA = 1
"""Version of the spec format."""

SETTLED = 2.0
"""Seconds after a file's last change from which on its time and size tell whether it has changed again."""

CONTENT = "a mapping of options: 'model:', 'data:', ..."
"""What a spec is, in messages."""


class Layer(NamedTuple):
    """One file or mapping of a spec, before merging; ``path`` is None for a mapping, ``key`` identifies it."""

    tree: Tree
    label: str
    path: Path | None
    key: object


def extended(sources: Iterable[Layer], registry: Registry) -> list[Layer]:
    """The layers of several sources, each after everything that it extends. A file reached twice keeps its first place.

    Raises:
        SpecError: a file cannot be read or has another spec format, or ``extends`` goes in a circle.
    """
    done: dict[object, Layer] = {}
    for source in sources:
        _gather(source, (), done, registry)
    return list(done.values())


def _gather(layer: Layer, chain: tuple[Layer, ...], done: dict[object, Layer], registry: Registry) -> None:
    if layer.key in done:
        return
    check_schema(layer.tree)
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


def open_source(name: str | os.PathLike[str], registry: Registry) -> Layer:
    """The layer of a YAML file, or of a recipe by its name.

    Raises:
        SpecError: there is none, or it cannot be read.
    """
    if isinstance(name, os.PathLike) or _is_file_name(name):
        return _open_file(Path(name), os.fspath(name))
    return _open_recipe(name, registry)


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
        file = path.stat()
        of_file = _read_file.__wrapped__ if time.time() - file.st_mtime < SETTLED else _read_file
        tree = of_file(path, label, plugin, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
    except OSError as error:
        reject(f"cannot read {label}: {error.strerror}", at=at, place=place, expected="a YAML file")
    if tree.data is None:
        reject("the file is empty", place=Place(label), expected=CONTENT)
    if not isinstance(tree.data, dict):
        reject(f"the file holds {found(tree.data)}", place=Place(label), expected=CONTENT)
    return Layer(tree, label, path, (file.st_dev, file.st_ino))


@lru_cache(256)
def _read_file(path: Path, label: str, plugin: str, *state: int) -> Tree:
    """The tree of a file, which is not changed: many recipes extend the same few. files differ in ``state``."""
    raw = read_regular(path, LARGEST_FILE).removeprefix(BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reject("not UTF-8 text", place=Place(label, raw.count(b"\n", 0, error.start) + 1))
    return read(text, label, plugin=plugin)


def check_schema(tree: Tree) -> None:
    """Rejects a layer of another version of the spec format.

    Raises:
        SpecError: it is one.
    """
    schema = tree.data.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        place = tree.places.get(("schema",))
        reject(f"written in spec format {schema}; this moekit reads format {SCHEMA}", at=("schema",), place=place)


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
    try:
        layers = extended([_open_file(recipe.path, f"{recipe.name}.yaml", plugin=recipe.plugin)], registry)
    except MoekitError:
        return Head()
    tops = [layer.tree.data for layer in layers]
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


class Merged:
    """The layers merged so far, the lowest first.

    Attributes:
        data: the merged data.
        places: where each part of it was written.
        over: layers that hold a mapping over an interpolation, by its path; they are not merged yet.
        replaced: what was last at a path before another value, by another ``use`` for example, took its place.
    """

    def __init__(self, registry: Registry, layers: Iterable[Tree] = ()) -> None:
        self.data: dict[str, Any] = {}
        self.places: dict[Keys, Place] = {}
        self.over: dict[Keys, list[Tree]] = {}
        self.replaced: dict[Keys, Any] = {}
        self._registry = registry
        for layer in layers:
            self.lay(layer)

    def lay(self, layer: Tree) -> None:
        """Merges one more layer over the others. The layer is not changed."""
        replaced: dict[Keys, Any] = {}
        held: dict[Keys, dict[str, Any]] = {}
        self._merge(self.data, layer.data, (), replaced, held)
        for kept in (self.places, self.over) if replaced else ():
            for path in [path for path in kept if any(path[:end] in replaced for end in range(1, len(path) + 1))]:
                del kept[path]
        for path, mapping in held.items():
            below = {here: place for here, place in layer.places.items() if here[: len(path)] == path}
            self.over.setdefault(path, []).append(Tree(nested(path, mapping), below))
        self.places |= layer.places
        self.replaced |= replaced

    def _merge(
        self, base: dict[str, Any], over: dict[str, Any], path: Keys, replaced: dict[Keys, Any], held: dict[Keys, Any]
    ) -> None:
        """Merges ``over`` into ``base``. Notes the paths that it replaced, and the mappings over an interpolation."""
        for key, new in over.items():
            here, old = (*path, key), base.get(key)
            if isinstance(new, dict) and isinstance(old, str):
                if "${" in old:
                    from moekit.spec.references import is_readable  # OmegaConf's, and seldom needed

                    if is_readable(old):
                        held[here] = new
                        continue
                elif old != LEFT_OPEN and not names_part(new):
                    old = base[key] = {"use": old}
            elif isinstance(new, str) and isinstance(old, dict) and names_part(old) and _is_name(new):
                new = {"use": new}
            if isinstance(new, dict) and isinstance(old, dict) and self._same_use(old, new):
                self._merge(old, new, here, replaced, held)
            else:
                if key in base:
                    replaced[here] = base.pop(key)  # the new value comes last
                base[key] = copy.deepcopy(new) if isinstance(new, dict | list) else new

    def _same_use(self, base: dict[str, Any], over: dict[str, Any]) -> bool:
        """Whether a node keeps its component: ``use`` is absent, unchanged, or another name of the same component.

        A class by its import path is kept in the same way.
        """
        if "class" in over or "class" in base:
            return "use" not in over and over.get("class", base.get("class")) == base.get("class")
        old, new = base.get("use"), over.get("use", ...)
        if new is ... or old is None or old == new:
            return True
        if not isinstance(old, str) or not isinstance(new, str) or "/" not in old + new:
            return False
        offered = [
            [(c.kind, c.full_name) for c in self._registry.components() if name in (c.name, c.full_name)]
            for name in (old, new)
        ]
        return offered[0] != [] and offered[0] == offered[1]


def names_part(node: dict[str, Any]) -> bool:
    """Whether a node names a component or a class."""
    return "use" in node or "class" in node


def _is_name(value: Any) -> bool:
    """Whether this is text that may be the short form of a node."""
    return isinstance(value, str) and value != LEFT_OPEN and not is_reference(value)


def nested(path: Keys, value: Any) -> Any:
    """``value`` in mappings, so that it is at ``path``."""
    for key in reversed(path):
        value = {key: value}
    return value
