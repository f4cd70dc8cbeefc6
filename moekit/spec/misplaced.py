"""Why a slot or a group of a spec made in Python cannot hold a value, as the sentence of a conflict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moekit.spec.fields import Spec, fields_of, group_class


def misplaced(spec: type[Spec], name: str, value: Any) -> str:
    """Why a slot, a map of slots or a group cannot hold a value made in Python, as a sentence."""
    info = fields_of(spec)[name]
    if info.kind == "group":
        return f"{name} is {_named(value)}; expected {group_class(spec, name).__name__}(...)"
    if info.kind == "slots" and not isinstance(value, Mapping):
        return f"{name} is {_named(value)}; expected a mapping from names to specs of {info.component}s"
    parts = {f"{name}[{key!r}]": each for key, each in value.items()} if info.kind == "slots" else {name: value}
    wrong = {k: v for k, v in parts.items() if not isinstance(v, Spec) or v.kind != info.component}
    where, each = next(iter(wrong.items()))
    expected = f"the spec of a component of kind '{info.component}' (list them: moekit ls {info.component})"
    return f"{where} is {_named(each)}; expected {expected}"


def _named(value: Any) -> str:
    """What a value is: ``LoadBalance (a spec of kind 'balancer')``, ``the class TopK``, ``a dict``, ``None``."""
    if isinstance(value, Spec):
        return type(value).__name__ + (f" (a spec of kind '{value.kind}')" if value.kind else "")
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"
