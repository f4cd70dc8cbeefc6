"""A JSON schema of recipes with every installed component, for editors: completion, help, and mistakes as you type.

The schema describes one file. It demands no option, since a file may extend another; what a whole recipe needs, and
what its parts need of each other, ``moekit config validate`` checks. It wants values of their own type, where ``load``
converts: a number without quotes, and text that looks like a number in quotes.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, Literal
from urllib.parse import quote

from moekit.component import Component, import_string
from moekit.errors import PluginError
from moekit.registry import Registry
from moekit.spec.dumping import plain_value
from moekit.spec.fields import FieldInfo, Spec, fields_of, is_optional, members
from moekit.spec.recipe import Recipe
from moekit.spec.tree import LEFT_OPEN

Schema = dict[str, Any]

_TYPES: Mapping[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_NULL: Schema = {"type": "null"}
_CLASS: Schema = {"type": "object", "properties": {"class": {"type": "string"}}, "required": ["class"]}


def recipe_schema(registry: Registry) -> Schema:
    """The JSON schema (draft 2020-12) of recipes that use the components in ``registry``.

    Every value may also be an interpolation, ``???`` or null. A component whose spec cannot be imported takes any
    options, and its description says why.
    """
    writer = _Writer(registry)
    names = [{"enum": _both(registry.recipes)}, {"type": "string", "pattern": r"\.ya?ml$"}]
    extends = {
        "description": "recipes or files that this file is merged over",
        "anyOf": [*names, {"type": "array", "items": {"anyOf": names}}, _NULL],
    }
    root = _closed({"extends": extends, **writer.options(Recipe)})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "recipe", **root, "$defs": writer.defs}


class _Writer:
    """Writes the schemas of spec classes; ``defs`` collects those that may be referred to."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.defs: dict[str, Schema] = {
            "reference": {
                "description": "a value that is given elsewhere",
                "anyOf": [{"type": "string", "pattern": r"\$\{"}, {"const": LEFT_OPEN}],
            }
        }

    def options(self, spec: type[Spec]) -> dict[str, Schema]:
        """The schema of each field of a spec class."""
        return {name: self.field(spec, name, info) for name, info in fields_of(spec).items()}

    def field(self, spec: type[Spec], name: str, info: FieldInfo) -> Schema:
        """The schema of one field, with its help and default."""
        default = info.default
        if info.kind == "option":
            choices = _choices(info.type, info)
        elif info.kind == "slot":
            choices = [self.slot(info.component)]
            claims = [c for c in self.registry.components(info.component) if c.default and info.claimed]
            default = claims[0].name if len(claims) == 1 else default
        elif info.kind == "slots":
            entry = {"anyOf": [self.slot(info.component), _ref("reference"), _NULL]}
            choices = [{"type": "object", "additionalProperties": entry}]
        else:
            choices = [self.group(info.specs[0])]
        out: Schema = {"anyOf": [*choices, _ref("reference"), _NULL]}
        if info.help:
            out["description"] = info.help
        if default is not MISSING and default not in (math.inf, -math.inf):
            out["default"] = plain_value(default, self.registry)
        return out

    def group(self, spec: type[Spec]) -> Schema:
        """A reference to the schema of a group of options."""
        key = import_string(spec)
        if key not in self.defs:
            self.defs[key] = {}  # the group may hold another of its class
            self.defs[key] = _closed(self.options(spec))
        return _ref(key)

    def slot(self, kind: str) -> Schema:
        """A reference to the schema of a slot: a name, ``use`` with options, or options over an inherited component."""
        if kind not in self.defs:
            self.defs[kind] = {}  # a component may hold another of its kind
            components = self.registry.components(kind)
            keys = {f"{kind}:{c.full_name}": self.component(c) for c in components}
            self.defs |= keys
            self.defs[f"{kind}:inherited"] = _over_any(keys)
            ways = [{"enum": _both(components)}, *map(_ref, keys), _ref(f"{kind}:inherited")]
            of = self.registry.kind(kind)
            ways += [_CLASS] if of.imports else []
            self.defs[kind] = {"description": of.summary, "anyOf": ways}
        return _ref(kind)

    def component(self, component: Component) -> Schema:
        """The schema of ``{use: name, ...}``."""
        use = {"use": {"enum": _both([component])}}
        about = {"title": component.name, "description": component.summary, "required": ["use"]}
        try:
            return {**about, **_closed({**use, **self.options(component.spec_class)})}
        except PluginError as error:
            return {**about, "description": str(error), "type": "object", "properties": use}


def _over_any(components: Mapping[str, Schema]) -> Schema:
    """The schema of options without ``use``: those of any of the components, which another file names."""
    found: dict[str, dict[str, Schema]] = {}
    for key, schema in components.items():
        for name, option in schema["properties"].items():
            if name != "use" and option not in found.setdefault(name, {}).values():
                found[name][f"{key}/properties/{name}"] = option
    options = {name: {"anyOf": [_ref(*path.rsplit("/", 2)) for path in paths]} for name, paths in found.items()}
    out = _closed({"use": _ref("reference"), **options})
    if any("additionalProperties" not in schema for schema in components.values()):
        out["additionalProperties"] = {}
    return out


def _choices(hint: Any, info: FieldInfo) -> list[Schema]:
    """The schemas of a plain value of a type: one for each member of a union."""
    return [_value(member, info) for member in members(hint)]


def _value(hint: Any, info: FieldInfo) -> Schema:
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (list, tuple):
        items = [_item(arg, info) for arg in args if arg is not ...]
        if origin is tuple and len(args) > 1 and ... not in args:
            return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
        return {"type": "array", "items": items[0] if items else {}}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _item(args[1], info) if args else {}}
    if origin not in _TYPES:
        return {}
    bounds = {word: getattr(info, name) for name, word in _BOUNDS.items()} if origin in (int, float) else {}
    return {"type": _TYPES[origin], **{word: bound for word, bound in bounds.items() if bound is not None}}


def _item(hint: Any, info: FieldInfo) -> Schema:
    """An item of a list or a mapping, which may be an interpolation."""
    return {"anyOf": [*_choices(hint, info), _ref("reference"), *([_NULL] if is_optional(hint) else [])]}


def _closed(options: Mapping[str, Schema]) -> Schema:
    """A mapping with these keys and no others."""
    return {"type": "object", "properties": dict(options), "additionalProperties": False}


def _both(offers: typing.Iterable[Any]) -> list[str]:
    """The names of offers: ``name`` and ``plugin/name``."""
    return list(dict.fromkeys(name for offer in offers for name in (offer.name, offer.full_name)))


def _ref(key: str, *path: str) -> Schema:
    return {"$ref": "/".join(["#/$defs", *(quote(part.replace("/", "~1"), safe=":~") for part in (key, *path))])}
