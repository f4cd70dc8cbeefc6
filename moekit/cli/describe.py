"""Describes a component by its spec class alone: options, slots, capabilities. Imports no target and no torch."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moekit.component import Component
from moekit.record import defaults_of
from moekit.registry import current
from moekit.spec.fields import FieldInfo, Spec, fields_of, group_class, types_of


def option_rows(spec: type[Spec], prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """Name, type, default, range and help of each option; options of a group are named ``group.option``."""
    for name, (info, hint, default) in _fields(spec).items():
        if info.kind == "option":
            yield f"{prefix}{name}", type_text(hint), default, "" if info.choices else info.range_text(), info.help
        elif info.kind == "group":
            yield f"{prefix}{name}", "group", default, "", info.help
            yield from option_rows(group_class(spec, name), f"{prefix}{name}.")


def slot_rows(spec: type[Spec], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, accepted kind, help, and the command that lists the choices, of each slot."""
    for name, (info, _, default) in _fields(spec).items():
        if info.kind == "group":
            yield from slot_rows(group_class(spec, name), f"{prefix}{name}.")
        elif info.kind != "option":
            takes = f"{info.component}s by name" if info.kind == "slots" else info.component
            takes += ", optional" if info.kind == "slot" and default else ""
            yield f"{prefix}{name}", takes, info.help, f"moekit ls {current().kind(info.component).plural}"


def capabilities(spec: type[Spec]) -> dict[str, str]:
    """The capabilities that a spec class states in class variables, such as the form of routing.

    A property in place of a class variable is printed as 'depends on its options'.
    """
    names: dict[str, None] = {}
    for base in reversed(spec.__mro__):
        for name, annotation in vars(base).get("__annotations__", {}).items():
            if "ClassVar" in str(annotation) and name not in ("kind", "refused"):
                names[name] = None
    return {name: _capability(getattr(spec, name)) for name in names if not name.startswith("_")}


def docstring(component: Component) -> str:
    """The docstring of a component's target, read from its source without importing it.

    Raises:
        PluginError: the source does not define the target, which cannot be imported either.
    """
    if isinstance(component.target, str):
        module, _, name = component.target.partition(":")
        found = importlib.util.find_spec(module)
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                    return ast.get_docstring(node) or ""
    return inspect.getdoc(component.load()) or ""


def type_text(hint: Any) -> str:
    """A type as text: ``int``, ``softmax | sigmoid``, ``list of float``, ``int | null``."""
    args = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [type_text(a) for a in args if a is not type(None)]
        return " | ".join(inner) + (" | null" if type(None) in args else "")
    if origin is typing.Literal:
        return " | ".join(value_text(a) for a in args)
    if origin is list or origin is tuple:
        return f"list of {type_text(args[0])}" if args else "list"
    if origin is dict:
        return f"map of {type_text(args[1])}"
    return "any" if hint is Any else str(getattr(hint, "__name__", hint))


def value_text(value: Any) -> str:
    """A value as in YAML: ``null``, ``true``, ``0.001``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    return "''" if value == "" else str(value)


def _fields(spec: type[Spec]) -> dict[str, tuple[FieldInfo, Any, str]]:
    """Each field's info, resolved type, and default as text (``required`` where there is none)."""
    hints = types_of(spec)
    return {name: (info, hints[name], _default_text(spec, name, info)) for name, info in fields_of(spec).items()}


def _default_text(spec: type[Spec], name: str, info: FieldInfo) -> str:
    default = defaults_of(spec)[name]
    if default is dataclasses.MISSING:
        return "" if info.kind == "slot" else "required"
    return "optional" if default is None and info.kind != "option" else value_text(default)


def _capability(value: Any) -> str:
    if isinstance(value, property):
        return "depends on its options"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(sorted(map(str, value))) if isinstance(value, frozenset | set | tuple) else str(value)
