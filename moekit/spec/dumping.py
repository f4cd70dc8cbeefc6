"""Specs as plain data, as a config and as YAML text: resolved, every option written, in the order of declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moekit.registry import Registry, current
from moekit.spec.fields import Spec, fields_of
from moekit.spec.imported import Imported
from moekit.spec.references import escape


def to_plain(spec: Spec, *, registry: Registry | None = None, full_names: bool = False) -> dict[str, Any]:
    """A recipe, component spec or group as mappings, lists and scalars; ``load`` makes an equal spec of them.

    With ``full_names``, components are named ``plugin/name``: installing another plugin then makes none ambiguous.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    registry = current() if registry is None else registry
    if isinstance(spec, Imported):
        return {"class": spec.path, **plain_value(spec.arguments)}
    out: dict[str, Any] = {}
    if spec.kind:
        out["use"] = registry.component_of(spec).full_name if full_names else registry.use_name(spec)
    for name, info in fields_of(type(spec)).items():
        value = getattr(spec, name)
        if info.kind == "option":
            out[name] = plain_value(value)
        elif info.kind == "slots":
            out[name] = {key: to_plain(item, registry=registry, full_names=full_names) for key, item in value.items()}
        else:
            out[name] = None if value is None else to_plain(value, registry=registry, full_names=full_names)
    return out


def to_config(spec: Spec, *, registry: Registry | None = None) -> DictConfig:
    """The same as an OmegaConf config, which ``load`` takes too. A literal ``${`` in a text is escaped.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    return OmegaConf.create(to_plain(spec, registry=registry))


def plain_value(value: Any) -> Any:
    """An option's value for YAML: tuples become lists, and ``${`` is escaped."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


def dump(spec: Spec, *, registry: Registry | None = None, full_names: bool = False) -> str:
    """The spec as YAML text that ``load`` reads back to an equal spec; ``full_names`` as in ``to_plain``.

    Raises:
        PluginError: no loaded plugin offers a component for one of the specs in it.
    """
    from moekit.spec.yaml_text import write

    return write(to_plain(spec, registry=registry, full_names=full_names))
