"""What differs between two specs, told the way one would tell it: this router became that router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moekit.spec.fields import Spec, default_of, fields_of
from moekit.spec.kinds import Paper, Recipe
from moekit.spec.places import Keys, show

LABELS = ("schema", "requires", "name", "summary")
"""Fields of a recipe that say what it is called, not what it does; no difference is told of them."""


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        path: where, as ``model.moe.router``.
        before: the value, component or group in the first spec; None where there is none.
        after: the same in the second.
    """

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {tell(self.before)} -> {tell(self.after)}"


def diff(a: Spec, b: Spec) -> list[Change]:
    """The differences from ``a`` to ``b``, in the order of the schema; what is equal is left out.

    A component exchanged for another is one change, and so is a paper; parts that two exchanged components both
    have (a decoder and a mixture both have ``moe``) are compared further.
    """
    return list(_node(a, b, ()))


def _node(a: Any, b: Any, path: Keys) -> Iterator[Change]:
    if a == b:
        return
    if isinstance(a, Paper) or isinstance(b, Paper):
        yield Change(show(path), a, b)
    elif isinstance(a, Spec) and type(a) is type(b):
        yield from _fields(a, b, path, list(fields_of(type(a))))
    elif isinstance(a, Spec) and isinstance(b, Spec):
        yield Change(show(path), a, b)
        yield from _fields(a, b, path, _shared(a, b))
    elif _is_group(a) or _is_group(b):
        yield from _half(a, b, path)
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _node(a.get(key), b.get(key), (*path, key))
    else:
        yield Change(show(path), a, b)


def _fields(a: Spec, b: Spec, path: Keys, names: list[str]) -> Iterator[Change]:
    for name in names:
        if not (isinstance(a, Recipe) and name in LABELS):
            yield from _node(getattr(a, name), getattr(b, name), (*path, name))


def _half(a: Any, b: Any, path: Keys) -> Iterator[Change]:
    """A group that only one side has: told part by part."""
    group = b if a is None else a
    told = _told(group)
    for name in told:
        value = getattr(group, name)
        for before, after in [(None, value) if a is None else (value, None)]:
            if isinstance(value, Mapping):
                before, after = before or {}, after or {}
            yield from _node(before, after, (*path, name))
    if not told:
        yield Change(show(path), a, b)


def _is_group(value: Any) -> bool:
    return isinstance(value, Spec) and not value.kind


def _shared(a: Spec, b: Spec) -> list[str]:
    """Fields that hold parts of the same kind in both, one of the parts at least being there."""
    mine, other = fields_of(type(a)), fields_of(type(b))
    return [
        name
        for name, info in mine.items()
        if info.kind != "option"
        and name in other
        and (other[name].kind, other[name].component) == (info.kind, info.component)
    ]


def _told(spec: Spec) -> list[str]:
    """Names of the fields whose value is not their default."""
    return [name for name in fields_of(type(spec)) if getattr(spec, name) != default_of(type(spec), name)]


def tell(value: Any, depth: int = 0) -> str:
    """A value as a change tells it: ``none``, ``[1, 2]``, ``topk(top_k=8)`` with the options that are not default."""
    if value is None:
        return "none"
    if isinstance(value, Paper):
        return " ".join(filter(None, [value.title or "untitled", f"({value.year})" if value.year else ""]))
    if isinstance(value, Spec):
        name = _name(value)
        told = _told(value)
        if depth and told:
            return f"{name}(...)"
        return f"{name}({', '.join(f'{n}={tell(getattr(value, n), depth + 1)}' for n in told)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {tell(item, depth + 1)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(tell(item, depth + 1) for item in value) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _name(spec: Spec) -> str:
    if not spec.kind or isinstance(spec, Recipe):
        return ""
    from moekit.registry import current

    return current().use_name(spec)
