"""Makes a spec of merged layers: plans its nodes, resolves and converts values, constructs specs from the leaves up."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import omegaconf

from moekit.errors import PluginError, nearest
from moekit.registry import Registry
from moekit.spec.fields import (
    LARGEST,
    ConflictError,
    FieldInfo,
    Spec,
    describe,
    fields_of,
    is_a,
    is_optional,
    members,
)
from moekit.spec.kinds import Imported
from moekit.spec.merging import Merged
from moekit.spec.places import BROKEN, LEFT_OPEN, Keys, Report, found, one_of, show
from moekit.spec.planning import Node, Planner
from moekit.spec.references import register_plugins_resolvers

ARGUMENT = FieldInfo("option", "")


def compose(layers: Merged, root: type[Spec] | str, registry: Registry) -> Spec:
    """The spec that merged layers describe.

    Args:
        layers: the layers; they are changed.
        root: the class of the spec, or the kind of a component whose class ``use`` says.
        registry: what ``use`` names.

    Raises:
        SpecError: with every mistake in the layers.
        PluginError: a spec class declares an option of a type that no spec can hold.
    """
    register_plugins_resolvers(registry)
    report = Report(layers.places)
    planner = Planner(layers, registry, report)
    node = planner.root(root)
    out = _Builder(planner, report).build(node)
    if out is BROKEN and not report:
        planner.references.report_open()
    report.keep(planner.references.is_news)
    report.raise_if_any()
    assert isinstance(out, Spec)
    return out


class _Builder:
    def __init__(self, planner: Planner, report: Report) -> None:
        self.planner = planner
        self.report = report
        self.origin: dict[Keys, str] = {}
        self.values = Values(report, self.origin)

    def build(self, node: Any) -> Any:
        """The spec of ``node``; ``BROKEN`` where the node or one of its children has a mistake."""
        if not isinstance(node, Node):
            return node
        if node.spec is Imported:
            arguments = {name: self._option(node, name, ARGUMENT) for name in node.options}
            return BROKEN if _broken(arguments) else Imported(path=node.use, arguments=arguments)
        given: dict[str, Any] = {}
        for name, info in fields_of(node.spec).items():
            child = node.children.get(name)
            if name in node.options:
                given[name] = self._option(node, name, info)
            elif info.kind == "slots" and isinstance(child, dict):
                entries = {key: self.build(item) for key, item in child.items()}
                given[name] = BROKEN if _broken(entries) else entries
            elif name in node.children:
                given[name] = self.build(child)
        if not node.sound or _broken(given):
            return BROKEN
        try:
            return node.spec(**given)
        except ValueError as error:
            sentences = error.sentences if isinstance(error, ConflictError) else (str(error),)
        except Exception as error:  # a mistake in a plugin
            sentences = (f"{node} cannot be checked: {type(error).__name__}: {error}",)
        for sentence in sentences:
            self.report.add(node.path, sentence)
        return BROKEN

    def _option(self, node: Node, name: str, info: FieldInfo) -> Any:
        path, written = (*node.path, name), node.written[name]
        if written == LEFT_OPEN:  # elsewhere planning finds it
            what = f"{name}: the recipe leaves this open ('{LEFT_OPEN}')"
            return self.report.add(path, what, expected="a plain value")
        value = self.planner.value(written, path) if isinstance(written, str | dict | list) else written
        if value is BROKEN or any(here[: len(path)] == path for here in self.planner.unread):
            return BROKEN
        if value is not written and isinstance(written, str):  # it was an interpolation
            self.origin[path] = f" (from {written})"
        try:
            return self.values.read(value, info, path)
        except PluginError as error:
            raise PluginError(f"{node}, option '{name}': {error}") from error


class Values:
    """Converts values to their declared types, by OmegaConf's nodes, and reports those that do not fit.

    Args:
        report: receives the problems.
        origin: the source of the value at a path, for messages: `` (from ${data.vocab})``.
    """

    def __init__(self, report: Report, origin: Mapping[Keys, str] | None = None) -> None:
        self.report = report
        self.origin = {} if origin is None else origin

    def read(self, value: Any, info: FieldInfo, path: Keys) -> Any:
        """``value`` as the type and in the range of ``info``; else ``BROKEN``."""
        if type(value) in info.scalars and value != LEFT_OPEN and not info.fault(value):
            return value  # as most values are
        limits = "" if info.choices else info.range_text()
        out = self.convert(value, info.type, path, limits)
        if out is BROKEN or not info.fault(out):
            return out
        for here, item in _leaves(out, path):
            if said := info.fault(item):
                limits = limits or ("" if said == "is not finite" else f"of at most {LARGEST:,}")
                self._wrong(here, item, said, expected=f"{describe(info.type)} {limits}".rstrip())
        return BROKEN

    def convert(self, value: Any, hint: Any, path: Keys, limits: str = "") -> Any:
        """``value`` as the type ``hint``; else ``BROKEN``. Messages add ``limits`` to the expected type."""
        expected = f"{describe(hint)} {limits}".rstrip()
        if value == LEFT_OPEN:
            what = f"{_name(path)}: the recipe leaves this open ('{LEFT_OPEN}')"
            return self.report.add(path, what, expected=expected)
        if hint is Any:
            return self._plain(value, path)
        if value is None and is_optional(hint):
            return None
        members_of = members(hint)
        if len(members_of) > 1:
            for fits in (_is_exactly, _converts):
                for member in members_of:
                    if fits(value, member):
                        return self.convert(value, member, path, limits)
            return self._wrong(path, value, f"is not {describe(hint)}", expected=expected)
        (hint,) = members_of
        origin = typing.get_origin(hint)
        if origin is Literal:
            return self._choice(value, typing.get_args(hint), path)
        if hint in (list, tuple) or origin in (list, tuple):
            return self._list(value, hint, path, expected, limits)
        if hint is dict or origin in (dict, Mapping):
            return self._dict(value, hint, path, expected, limits)
        out = scalar(value, hint)
        if out is BROKEN:
            quoted = isinstance(value, int | float) and not isinstance(value, bool) and hint is str
            hint_text = f"{expected}, in quotes" if quoted else expected
            self._wrong(path, value, f"is not {describe(hint)}", expected=hint_text)
        return out

    def _choice(self, value: Any, choices: tuple[Any, ...], path: Keys) -> Any:
        for choice in choices:
            if scalar(value, type(choice)) == choice:
                return choice
        texts = [found(c).strip("'") for c in choices]
        near = nearest(value, texts) if isinstance(value, str) else ""
        return self._wrong(path, value, "is none of its choices", expected=one_of(texts), nearest=near)

    def _list(self, value: Any, hint: Any, path: Keys, expected: str, limits: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(path, value, "is not a list", expected=expected)
        args = typing.get_args(hint) or (Any,)
        many = tuple if typing.get_origin(hint) is tuple or hint is tuple else list
        fixed = many is tuple and len(args) > 1 and args[-1] is not ...
        if fixed and len(value) != len(args):
            return self._wrong(path, value, f"of {len(value)}", expected=f"a list of {len(args)}")
        hints = args if fixed else (args[0],) * len(value)
        items = [self.convert(v, h, (*path, i), limits) for i, (v, h) in enumerate(zip(value, hints, strict=True))]
        return BROKEN if any(item is BROKEN for item in items) else many(items)

    def _dict(self, value: Any, hint: Any, path: Keys, expected: str, limits: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, value, "is not a mapping", expected=expected)
        for key in value:
            if not isinstance(key, str):
                return self._wrong(path, value, f"has key {key!r}, which is not text", expected=expected)
        args = typing.get_args(hint)
        inner = args[1] if args else Any
        items = {k: self.convert(v, inner, (*path, k), limits) for k, v in value.items() if v is not None}
        return BROKEN if _broken(items) else items

    def _plain(self, value: Any, path: Keys) -> Any:
        if isinstance(value, Mapping):
            return self._dict(value, dict[str, Any], path, "", "")
        if isinstance(value, list | tuple):
            return self._list(value, list[Any], path, "", "")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return self._wrong(path, value, "is not a plain value", expected="text, a number, a list or a mapping")

    def _wrong(self, path: Keys, value: Any, said: str, *, expected: str, nearest: str = "") -> Any:
        what = f"{_name(path)}: {found(value)}{self.origin.get(path, '')} {said}"
        return self.report.add(path, what, expected=expected, nearest=nearest)


def _broken(values: Mapping[str, Any]) -> bool:
    """Whether one of the values has a mistake. Not ``in``, which would compare them."""
    return any(value is BROKEN for value in values.values())


def _leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    """Every plain value in a list or mapping, with its path."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _name(path: Keys) -> str:
    """The last key of a path, with the indices below it."""
    start = next((i for i in range(len(path) - 1, -1, -1) if isinstance(path[i], str)), 0)
    return show(path[start:]) or "value"


_NODES: dict[type, Any] = {
    int: omegaconf.IntegerNode(),
    float: omegaconf.FloatNode(),
    bool: omegaconf.BooleanNode(),
    str: omegaconf.StringNode(),
}
"""OmegaConf's nodes for scalar types, which convert values to them."""


def scalar(value: Any, kind: type) -> Any:
    """``value`` as int, float, bool or str if the conversion loses nothing; else ``BROKEN``.

    Raises:
        PluginError: ``kind`` is another type.
    """
    if kind not in _NODES:
        raise PluginError(
            f"an option cannot be of type {kind!r}: int, float, bool, str, Literal, list and dict are read"
        )
    if value is None or (isinstance(value, bool) != (kind is bool) and not isinstance(value, str)):
        return BROKEN
    if kind is int and isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else BROKEN
    if kind is str and isinstance(value, float):
        return BROKEN  # '2412.10' would come out as '2412.1'
    try:
        out = _NODES[kind].validate_and_convert(value)
    except (omegaconf.errors.ValidationError, ValueError, OverflowError):
        return BROKEN
    return BROKEN if isinstance(out, float) and math.isnan(out) else out


def _is_exactly(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return is_a(value, hint)
    return type(value) is (typing.get_origin(hint) or hint)


def _converts(value: Any, hint: Any) -> bool:
    return Values(trial := Report()).convert(value, hint, ()) is not BROKEN and not trial
