"""Specs as plain data and as YAML text: fully resolved, every option written, in the order of declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moekit.registry import current
from moekit.spec.fields import Spec, fields_of
from moekit.spec.imported import Imported
from moekit.spec.interpolation import escape


def to_plain(spec: Spec) -> dict[str, Any]:
    """A recipe, component spec or group as mappings, lists and scalars; ``load`` makes an equal spec of them.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    if isinstance(spec, Imported):
        return {"class": spec.path, **plain_value(spec.arguments)}
    out: dict[str, Any] = {}
    if spec.kind:
        out["use"] = current().use_name(spec)
    for name, info in fields_of(type(spec)).items():
        value = getattr(spec, name)
        if info.kind == "option":
            out[name] = plain_value(value)
        elif info.kind == "slots":
            out[name] = {key: to_plain(item) for key, item in value.items()}
        else:
            out[name] = None if value is None else to_plain(value)
    return out


def plain_value(value: Any) -> Any:
    """An option's value for YAML: tuples become lists, and ``${`` is escaped."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


def dump(spec: Spec) -> str:
    """The spec as YAML text that ``load`` reads back to an equal spec.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    from moekit.spec.yaml_text import write

    return write(to_plain(spec))
