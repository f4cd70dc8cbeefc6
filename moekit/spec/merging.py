"""Merges the layers of a spec. OmegaConf merges two; what it would mix up is taken out of the lower one before.

* Two mappings are merged key by key; everything else is replaced whole, lists too.
* A node whose ``use`` changes is replaced whole, so that it keeps no option of the old component. Text is the short
  form of such a node: ``router: topk`` is ``router: {use: topk}``.
* ``null`` stays in the tree in place of the lower value; composing reads it as *absent*.
* A mapping over ``${...}`` is merged over a copy of what that refers to once all layers are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError

from moekit.registry import Registry
from moekit.spec.places import LEFT_OPEN, Keys, Place, Tree
from moekit.spec.references import is_reference

MAX_TEXT = 4_000
"""Characters of a text with interpolations. Parsing them takes OmegaConf a second for each 20,000."""


class Merged:
    """The layers merged so far, the lowest first.

    Attributes:
        tree: the merged data.
        places: where each part of it was written.
        unread: the texts whose interpolation OmegaConf cannot parse; the tree has null in their place.
        over: layers that hold a mapping over an interpolation, by its path; they are not merged yet.
    """

    def __init__(self, registry: Registry, layers: Iterable[Tree] = ()) -> None:
        self.tree: DictConfig = OmegaConf.create({})
        self.places: dict[Keys, Place] = {}
        self.unread: dict[Keys, str] = {}
        self.over: dict[Keys, list[Tree]] = {}
        self._registry = registry
        for layer in layers:
            self.lay(layer)

    def lay(self, layer: Tree) -> None:
        """Merges one more layer over the others."""
        unread: dict[Keys, str] = {}
        data = _readable(layer.data, (), unread)
        replaced: set[Keys] = set()
        held: dict[Keys, dict[str, Any]] = {}
        self._make_room(self.tree, data, (), replaced, held)
        for kept in (self.places, self.unread, self.over):
            for path in [path for path in kept if any(path[:end] in replaced for end in range(len(path) + 1))]:
                del kept[path]
        for path, mapping in held.items():
            below = {here: place for here, place in layer.places.items() if here[: len(path)] == path}
            self.over.setdefault(path, []).append(Tree(_nested(path, mapping), below))
        self.places |= layer.places
        self.unread |= unread
        new = OmegaConf.create(data)
        if self.tree:
            OmegaConf.unsafe_merge(self.tree, new)  # in place
        else:
            self.tree = new

    def plain(self) -> Tree:
        """The merged data as one layer."""
        data: Any = OmegaConf.to_container(self.tree)
        for path, text in self.unread.items():
            node = data
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = text
        return Tree(data, self.places)

    def _make_room(
        self, base: DictConfig, over: dict[str, Any], path: Keys, replaced: set[Keys], held: dict[Keys, dict[str, Any]]
    ) -> None:
        """Deletes from ``base`` what ``over`` replaces, and writes short forms in full in both.

        Moves mappings over an interpolation from ``over`` to ``held``.
        """
        for key, new in list(over.items()):
            here = (*path, key)
            if key not in base.keys():  # `in base` would resolve the value
                continue
            if OmegaConf.is_interpolation(base, key):
                if isinstance(new, dict):
                    held[here] = over.pop(key)
                    continue
                old = None
            else:
                old = None if OmegaConf.is_missing(base, key) else base[key]
            if isinstance(new, str) and isinstance(old, DictConfig) and names_part(old) and new != LEFT_OPEN:
                if not is_reference(new):
                    over[key] = new = {"use": new}
            elif isinstance(new, dict) and isinstance(old, str) and "use" not in new and "class" not in new:
                base[key] = {"use": old}
                old = base[key]
            if isinstance(new, dict) and isinstance(old, DictConfig) and self._same_use(old, new):
                self._make_room(old, new, here, replaced, held)
            else:
                del base[key]
                replaced.add(here)

    def _same_use(self, base: DictConfig, over: dict[str, Any]) -> bool:
        """Whether a node keeps its component: ``use`` is absent, unchanged, or another name of the same component.

        A class by its import path is kept in the same way.
        """
        if "class" in over or "class" in base.keys():
            kept = OmegaConf.to_container(base).get("class")  # type: ignore[union-attr]
            return "use" not in over and over.get("class", kept) == kept
        old, new = OmegaConf.to_container(base).get("use"), over.get("use", ...)  # type: ignore[union-attr]
        if new is ... or old is None or old == new:
            return True
        if not isinstance(old, str) or not isinstance(new, str) or "/" not in old + new:
            return False
        offered = [self._offered(old), self._offered(new)]
        return offered[0] != [] and offered[0] == offered[1]

    def _offered(self, name: str) -> list[tuple[str, str]]:
        """The kind and full name of every component that ``name`` may mean."""
        return [(c.kind, c.full_name) for c in self._registry.components() if name in (c.name, c.full_name)]


def names_part(node: DictConfig) -> bool:
    """Whether a node names a component or a class."""
    return "use" in node.keys() or "class" in node.keys()


def _nested(path: Keys, value: Any) -> Any:
    """``value`` in mappings, so that it is at ``path``."""
    for key in reversed(path):
        value = {key: value}
    return value


def _readable(value: Any, path: Keys, unread: dict[Keys, str]) -> Any:
    """A copy of ``value`` without the texts that OmegaConf cannot parse: with one of them it rejects the whole tree."""
    if isinstance(value, dict):
        return {key: _readable(item, (*path, key), unread) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item, (*path, i), unread) for i, item in enumerate(value)]
    if is_reference(value):
        try:
            if len(value) <= MAX_TEXT:
                OmegaConf.create({"text": value})
                return value
        except (GrammarParseError, RecursionError):
            pass
        unread[path] = value
        return None
    return value
