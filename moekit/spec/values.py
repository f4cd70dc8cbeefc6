"""Converts plain values to their declared types, by OmegaConf's nodes, and reports values that do not fit."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal

import omegaconf

from moekit.errors import PluginError, nearest
from moekit.spec.fields import LARGEST, FieldInfo, is_finite
from moekit.spec.hints import describe, is_optional, members
from moekit.spec.places import BROKEN, LEFT_OPEN, Keys, Report, found, one_of, show


class Values:
    """Converts values and reports those that do not fit.

    Args:
        report: receives the problems.
        origin: gives the source of the value at a path, for messages: `` (from ${data.vocab})``.
    """

    def __init__(self, report: Report, origin: Callable[[Keys], str] = lambda path: "") -> None:
        self.report = report
        self.origin = origin

    def read(self, value: Any, hint: Any, info: FieldInfo, path: Keys) -> Any:
        """``value`` as the type ``hint`` and in the range of ``info``; else ``BROKEN``."""
        out = self.convert(value, hint, path, info.range_text() if not info.choices else "")
        if out is BROKEN or (info.allows(out) and (not info.finite or is_finite(out))):
            return out
        for here, item in _leaves(out, path):
            limits = info.range_text()
            if info.finite and not is_finite(item):
                self._wrong(here, item, "is not finite", expected=f"{describe(hint)} {limits}".rstrip())
            elif not info.allows(item):
                limits = limits or f"of at most {LARGEST:,}"
                self._wrong(here, item, "is out of range", expected=f"{describe(hint)} {limits}")
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
        return BROKEN if any(item is BROKEN for item in items.values()) else items

    def _plain(self, value: Any, path: Keys) -> Any:
        if isinstance(value, Mapping):
            return self._dict(value, dict[str, Any], path, "", "")
        if isinstance(value, list | tuple):
            return self._list(value, list[Any], path, "", "")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return self._wrong(path, value, "is not a plain value", expected="text, a number, a list or a mapping")

    def _wrong(self, path: Keys, value: Any, said: str, *, expected: str, nearest: str = "") -> Any:
        what = f"{_name(path)}: {found(value)}{self.origin(path)} {said}"
        return self.report.add(path, what, expected=expected, nearest=nearest)


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


@cache
def _node(kind: type) -> Any:
    """OmegaConf's node for a scalar type, which converts values to it."""
    nodes = {
        int: omegaconf.IntegerNode,
        float: omegaconf.FloatNode,
        bool: omegaconf.BooleanNode,
        str: omegaconf.StringNode,
    }
    if kind not in nodes:
        raise PluginError(
            f"an option cannot be of type {kind!r}: int, float, bool, str, Literal, list and dict are read"
        )
    make: Any = nodes[kind]
    return make()


def scalar(value: Any, kind: type) -> Any:
    """``value`` as int, float, bool or str if the conversion loses nothing; else ``BROKEN``.

    Raises:
        PluginError: ``kind`` is another type.
    """
    node = _node(kind)
    if value is None or (isinstance(value, bool) != (kind is bool) and not isinstance(value, str)):
        return BROKEN
    if kind is int and isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else BROKEN
    if kind is str and isinstance(value, float):
        return BROKEN  # '2412.10' would come out as '2412.1'
    try:
        out = node.validate_and_convert(value)
    except (omegaconf.errors.ValidationError, ValueError, OverflowError):
        return BROKEN
    return BROKEN if isinstance(out, float) and math.isnan(out) else out


def _is_exactly(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(c) and value == c for c in typing.get_args(hint))
    return type(value) is (typing.get_origin(hint) or hint)


def _converts(value: Any, hint: Any) -> bool:
    return Values(trial := Report()).convert(value, hint, ()) is not BROKEN and not trial
