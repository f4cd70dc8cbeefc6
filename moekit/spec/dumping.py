"""Plain data of specs, and of what a spec can be made of in Python; configs, YAML and short text of specs.

A spec is written resolved, with every option, in the order of declaration.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from moekit.registry import Registry, current
from moekit.spec.fields import Spec, defaults_of, fields_of
from moekit.spec.kinds import Imported
from moekit.spec.recipe import Paper
from moekit.spec.references import References, escape
from moekit.spec.tree import BROKEN, LEFT_OPEN, Keys, Place, Report, Tree, check_size, found, write

_HALF = re.compile("[\ud800-\udfff]")  # a lone surrogate, which no file can hold

NUMBERS = (int, float, bool, type(None))


def to_plain(spec: Spec, *, registry: Registry | None = None, full_names: bool = False) -> dict[str, Any]:
    """A recipe, component spec or group as mappings, lists and scalars; ``load`` makes an equal spec of them.

    With ``full_names``, components are named ``plugin/name``: installing another plugin then makes none ambiguous.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    registry = current() if registry is None else registry
    plain: dict[str, Any] = plain_value(spec, registry, full_names)
    return plain


def to_config(spec: Spec, *, registry: Registry | None = None) -> DictConfig:
    """The same as an OmegaConf config, which ``load`` takes too. A literal ``${`` in a text is escaped.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    return OmegaConf.create(to_plain(spec, registry=registry))


def plain_value(value: Any, registry: Registry | None = None, full_names: bool = False) -> Any:
    """An option's value for YAML: tuples become lists, and ``${`` is escaped. Specs in it are named by ``registry``."""
    if isinstance(value, str):
        return escape(value) if "${" in value else value
    if isinstance(value, list | tuple):
        return [
            v if type(v) in NUMBERS or (type(v) is str and "${" not in v) else plain_value(v, registry, full_names)
            for v in value
        ]
    if isinstance(value, Imported):
        value = {"class": value.path, **value.arguments}
    elif isinstance(value, Spec):
        fields = {name: getattr(value, name) for name in fields_of(type(value))}
        if value.kind and registry is not None:
            use = registry.component_of(value).full_name if full_names else registry.use_name(value)
            fields = {"use": use, **fields}
        value = fields
    if isinstance(value, Mapping):
        return {  # most options are simple
            k: v if type(v) in NUMBERS or (type(v) is str and "${" not in v) else plain_value(v, registry, full_names)
            for k, v in value.items()
        }
    return value


def dump(spec: Spec, *, registry: Registry | None = None, full_names: bool = False) -> str:
    """The spec as YAML text that ``load`` reads back to an equal spec; ``full_names`` as in ``to_plain``.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    return write(to_plain(spec, registry=registry, full_names=full_names))


def non_default(spec: Spec) -> list[str]:
    """Names of the fields that are not at their default."""
    return [name for name, default in defaults_of(type(spec)).items() if getattr(spec, name) != default]


def text_of(value: Any, *, depth: int = 0, without: Sequence[str] = (), only: Sequence[str] = ()) -> str:
    """A value as text: ``none``, ``[1, 2]``, ``topk(top_k=8)`` with the options that are not at their default.

    Args:
        value: an option's value, a spec, or a map of them.
        depth: depth inside another spec; below the top, options are shortened to ``(...)``.
        without: names of fields to omit.
        only: names of the fields to print, even at their default (default: those that are not).
    """
    if value is None:
        return "none"
    if isinstance(value, Paper):
        return " ".join(filter(None, [value.title or "untitled", f"({value.year})" if value.year else ""]))
    if isinstance(value, Imported):
        given = ", ".join(f"{name}={text_of(item, depth=depth + 1)}" for name, item in value.arguments.items())
        return f"{value.name}({'...' if depth and given else given})"
    if isinstance(value, Spec):
        names = list(only) or [name for name in non_default(value) if name not in without]
        if only and not value.kind:  # a group of alternatives, of which one is set
            names = [name for name in only if getattr(value, name) is not None] or names
        use = current().use_name(value) if value.kind else ""
        if depth and names:
            return f"{use}(...)"
        if not names and not value.kind:
            names = list(fields_of(type(value)))
        return f"{use}({', '.join(f'{n}={text_of(getattr(value, n), depth=depth + 1)}' for n in names)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {text_of(item, depth=depth + 1)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text_of(item, depth=depth + 1) for item in value) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def plain_tree(value: Any, label: str = "", *, registry: Registry) -> Tree:
    """Python data as a tree: a copy of mappings, lists, configs and specs as plain data.

    A config that is a part of a larger one is resolved where it is; any other keeps its interpolations.

    Args:
        value: a mapping, a list, a spec, or a ``DictConfig`` or ``ListConfig``.
        label: the source that messages name.
        registry: the names of the components in a spec.

    Raises:
        SpecError: with every key that is not text, every value that is not plain data, and every interpolation of a
            part of a config that cannot be resolved.
    """
    intake = _Intake(label, registry)
    data = intake.value(value, ())
    intake.report.raise_if_any()
    return Tree(data, intake.places)


class _Intake:
    def __init__(self, label: str, registry: Registry) -> None:
        self.label = label
        self.registry = registry
        self.places: dict[Keys, Place] = {}
        self.report = Report(self.places)

    def value(self, value: Any, path: Keys) -> Any:
        self.places[path] = Place(self.label)
        check_size(path, len(self.places), self.label)
        if isinstance(value, Spec):
            value = to_plain(value, registry=self.registry)
        elif OmegaConf.is_config(value):
            value = self.config(value, path)
            if value is BROKEN:
                return value
        if isinstance(value, Mapping):
            return {key: self.value(item, (*path, key)) for key, item in value.items() if self.is_name(key, path)}
        if isinstance(value, list | tuple):
            return [self.value(item, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, Enum):
            return value.name  # as OmegaConf has it
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and _HALF.search(value):
            return self.report.add(path, f"{found(value)} holds half of a character", expected="text")
        for kind in (str, int, float):
            if isinstance(value, kind):
                return kind(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        name = f"{path[-1]}: " if path else ""
        expected = "text, a number, a list or a mapping"
        return self.report.add(path, f"{name}{found(value)} is not a plain value", expected=expected)

    def is_name(self, key: object, path: Keys) -> bool:
        if not isinstance(key, str):
            self.report.add(path, f"key {key!r} is not text", expected="a name, in quotes if need be")
        return isinstance(key, str)

    def config(self, config: Any, path: Keys) -> Any:
        plain: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
        try:
            parent = OmegaConf.select(config, "..")
        except ConfigKeyError:  # OmegaConf 2.3: there is none
            parent = None
        if parent is None or not isinstance(plain, dict | list):
            return plain
        references = References(config, self.report, if_open=LEFT_OPEN)
        items = plain.items() if isinstance(plain, dict) else enumerate(plain)
        found = [(key, references.value(config, key, item, (*path, key))) for key, item in items]
        if any(item is BROKEN for _, item in found):
            return BROKEN
        return plain_value(dict(found) if isinstance(plain, dict) else [item for _, item in found])
