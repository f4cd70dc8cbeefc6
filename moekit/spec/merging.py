"""Merges one tree over another: mappings merge, ``null`` deletes, another ``use`` replaces the node."""

from __future__ import annotations

from typing import Any

from moekit.registry import current
from moekit.spec.places import Keys, Tree


def merge(base: Tree, over: Tree) -> Tree:
    """``over`` merged over ``base``; neither is changed.

    * Two mappings are merged key by key; everything else is replaced whole, lists too.
    * A node whose ``use`` changes is replaced whole, so that it keeps no option of the old component.
    * ``null`` stays in the tree in place of the base's value; composing reads it as *absent*.
    """
    replaced: list[Keys] = []
    data = _merged(base.data, over.data, (), replaced)
    kept = {
        path: place
        for path, place in base.places.items()
        if not any(len(path) > len(top) and path[: len(top)] == top for top in replaced)
    }
    return Tree(data, {**kept, **over.places})


def _merged(base: Any, over: Any, path: Keys, replaced: list[Keys]) -> Any:
    if isinstance(over, str) and isinstance(base, dict) and ("use" in base or "class" in base):
        over = {"use": over}
    elif isinstance(base, str) and isinstance(over, dict) and "use" not in over:
        base = {"use": base}
    if not isinstance(base, dict) or not isinstance(over, dict) or not same_part(base, over):
        replaced.append(path)
        return over
    out = dict(base)
    for key, value in over.items():
        out[key] = _merged(base[key], value, (*path, key), replaced) if key in base else value
    return out


def same_part(base: dict[str, Any], over: dict[str, Any]) -> bool:
    """Whether a node keeps what it names, by ``use`` or by ``class``."""
    if "class" in base or "class" in over:
        return "use" not in over and over.get("class", base.get("class")) == base.get("class")
    return same_use(base.get("use"), over.get("use", ...))


def same_use(base: Any, over: Any) -> bool:
    """Whether a node keeps its component: ``use`` is absent, unchanged, or another name of the same component."""
    if over is ... or base is None or base == over:
        return True
    return isinstance(base, str) and isinstance(over, str) and ("/" in base or "/" in over) and _same(base, over)


def _same(one: str, other: str) -> bool:
    """Whether two names, at least one of them with its plugin, name the same component."""
    offered = {one: set[str](), other: set[str]()}
    for component in current().components():
        for name, meant in offered.items():
            if name in (component.name, component.full_name):
                meant.add(f"{component.kind} {component.full_name}")
    return bool(offered[one]) and offered[one] == offered[other]
