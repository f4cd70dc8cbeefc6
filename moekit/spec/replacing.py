"""Replaces every component of a kind, anywhere in a spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from moekit.spec.fields import Spec

S = TypeVar("S", bound=Spec)
T = TypeVar("T", bound=Spec)


def replace_all(spec: T, kind: type[S], change: Callable[[S], S]) -> T:
    """A copy of ``spec`` in which ``change`` has replaced every outermost component of class ``kind``."""
    changes = {}
    for field in fields(spec):
        before = getattr(spec, field.name)
        after = _changed(before, kind, change)
        if after is not before:
            changes[field.name] = after
    return replace(spec, **changes) if changes else spec


def find_all(spec: Spec, kind: type[S]) -> list[S]:
    """Every outermost component of class ``kind`` below ``spec``, in the order of the fields."""
    found: list[S] = []

    def keep(component: S) -> S:
        found.append(component)
        return component

    replace_all(spec, kind, keep)
    return found


def _changed(value: Any, kind: type[S], change: Callable[[S], S]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Spec):
        return replace_all(value, kind, change)
    if isinstance(value, Mapping):
        after = {key: _changed(item, kind, change) for key, item in value.items()}
        return value if all(after[key] is value[key] for key in after) else after
    return value
