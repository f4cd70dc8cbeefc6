"""The differences between two specs, as a reader of a paper would state them: this router became that router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moekit.spec.dumping import non_default, text_of
from moekit.spec.fields import Spec, fields_of
from moekit.spec.kinds import Imported
from moekit.spec.recipe import Paper, Recipe
from moekit.spec.tree import Keys, show

LABELS = ("schema", "requires", "name", "summary")
"""Fields of a recipe that name it and do not change what it does; they are not compared."""


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        path: such as ``model.moe.router``.
        before: the value, component or group in the first spec; None if there is none.
        after: the same in the second spec.
        options: if one component has several other options, their names.
    """

    path: str
    before: Any
    after: Any
    options: tuple[str, ...] = ()

    def sides(self) -> tuple[str, str]:
        """Both sides as text; two different components are printed without the parts that are compared separately."""
        before, after = self.before, self.after
        if self.options:
            return text_of(before, only=self.options), text_of(after, only=self.options)
        apart = _shared(before, after) if isinstance(before, Spec) and isinstance(after, Spec) else []
        return text_of(before, without=apart), text_of(after, without=apart)

    def __str__(self) -> str:
        return f"{self.path}: {' -> '.join(self.sides())}"


def diff(a: Spec, b: Spec) -> list[Change]:
    """The differences from ``a`` to ``b``, in the order of declaration.

    A component exchanged for another is one change, and so is a paper; parts that both components have (a decoder and
    a mixture both have ``moe``) are compared further. Several options of one component make one change.
    """
    return list(_node(a, b, ()))


def _node(a: Any, b: Any, path: Keys) -> Iterator[Change]:
    if a == b:
        return
    if isinstance(a, Paper | Imported) or isinstance(b, Paper | Imported):
        yield Change(show(path), a, b)
    elif isinstance(a, Spec) and isinstance(b, Spec):
        names = [*fields_of(type(a)), *fields_of(type(b))]
        if a.kind and type(a) is not type(b):
            yield Change(show(path), a, b)
            names = _shared(a, b)
        elif len(differ := _differing(a, b)) > 1:
            yield Change(show(path), a, b, differ)
            return
        yield from _fields(a, b, path, names)
    elif _is_group(a) or _is_group(b):
        yield from _fields(a, b, path, non_default(b if a is None else a))
    elif isinstance(a, Mapping | None) and isinstance(b, Mapping | None):
        before, after = a or {}, b or {}
        for key in dict.fromkeys([*before, *after]):
            yield from _node(before.get(key), after.get(key), (*path, key))
    else:
        yield Change(show(path), a, b)


def _differing(a: Spec, b: Spec) -> tuple[str, ...]:
    """Names of the options that differ between two specs of one class; empty for a class that holds components."""
    if _holds_parts(a):
        return ()
    return tuple(name for name in fields_of(type(a)) if getattr(a, name) != getattr(b, name))


def _fields(a: Spec | None, b: Spec | None, path: Keys, names: list[str]) -> Iterator[Change]:
    for name in dict.fromkeys(names):
        if not (isinstance(a, Recipe) and name in LABELS):
            yield from _node(getattr(a, name, None), getattr(b, name, None), (*path, name))


def _holds_parts(value: Any) -> bool:
    """Whether this is a spec whose fields hold others."""
    return isinstance(value, Spec) and any(info.kind != "option" for info in fields_of(type(value)).values())


def _is_group(value: Any) -> bool:
    """Whether this is a group that holds components: they are compared one by one, even where one side has no group."""
    return _holds_parts(value) and not value.kind


def _shared(a: Spec, b: Spec) -> list[str]:
    """Names of the fields that hold the same kind of component in both."""
    theirs = {(name, info.kind, info.component) for name, info in fields_of(type(b)).items() if info.kind != "option"}
    return [name for name, info in fields_of(type(a)).items() if (name, info.kind, info.component) in theirs]
