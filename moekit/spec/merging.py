"""Merges the layers of a spec, which are plain data: one config is made of the result, not one of each layer.

* Two mappings are merged key by key; everything else is replaced whole, lists too. So does OmegaConf.
* A node whose ``use`` changes is replaced whole, so that it keeps no option of the old component. Text is the short
  form of such a node: ``router: topk`` is ``router: {use: topk}``.
* ``null`` stays in the tree in place of the lower value; composing reads it as *absent*.
* A mapping over ``${...}`` is merged over a copy of what that refers to once all layers are there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from moekit.registry import Registry
from moekit.spec.places import LEFT_OPEN, Keys, Place, Tree
from moekit.spec.references import is_readable, is_reference


class Merged:
    """The layers merged so far, the lowest first.

    Attributes:
        data: the merged data.
        places: where each part of it was written.
        over: layers that hold a mapping over an interpolation, by its path; they are not merged yet.
    """

    def __init__(self, registry: Registry, layers: Iterable[Tree] = ()) -> None:
        self.data: dict[str, Any] = {}
        self.places: dict[Keys, Place] = {}
        self.over: dict[Keys, list[Tree]] = {}
        self._registry = registry
        for layer in layers:
            self.lay(layer)

    def lay(self, layer: Tree) -> None:
        """Merges one more layer over the others. The layer is not changed."""
        replaced: set[Keys] = set()
        held: dict[Keys, dict[str, Any]] = {}
        self._merge(self.data, layer.data, (), replaced, held)
        for kept in (self.places, self.over) if replaced else ():
            for path in [path for path in kept if any(path[:end] in replaced for end in range(1, len(path) + 1))]:
                del kept[path]
        for path, mapping in held.items():
            below = {here: place for here, place in layer.places.items() if here[: len(path)] == path}
            self.over.setdefault(path, []).append(Tree(nested(path, mapping), below))
        self.places |= layer.places

    def _merge(
        self, base: dict[str, Any], over: dict[str, Any], path: Keys, replaced: set[Keys], held: dict[Keys, Any]
    ) -> None:
        """Merges ``over`` into ``base``. Notes the paths that it replaced, and the mappings over an interpolation."""
        for key, new in over.items():
            here = (*path, key)
            old = base.get(key)
            if isinstance(new, dict) and is_reference(old) and is_readable(old):
                held[here] = new
                continue
            if isinstance(old, dict) and names_part(old) and _is_name(new):
                new = {"use": new}
            elif isinstance(new, dict) and not names_part(new) and _is_name(old):
                old = base[key] = {"use": old}
            if isinstance(new, dict) and isinstance(old, dict) and self._same_use(old, new):
                self._merge(old, new, here, replaced, held)
            else:
                if key in base:
                    del base[key]  # the new value comes last
                    replaced.add(here)
                base[key] = copy.deepcopy(new)

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
