"""The declared types of options as text, for messages, and the members of unions."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from moekit.spec.places import one_of

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "a plain value"}
_MANY = {int: "integers", float: "numbers", bool: "true or false", str: "text", Any: "plain values"}


def is_optional(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return hint is None or hint is type(None) or type(None) in typing.get_args(hint)


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None; of another type, that type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
    return (hint,)


def describe(hint: Any) -> str:
    """A type as messages describe it: ``an integer``, ``a list of numbers``, ``text or null``."""
    if hint is Any:
        return _WORDS[Any]
    words = []
    for member in members(hint):
        origin, args = typing.get_origin(member) or member, typing.get_args(member)
        if origin is Literal:
            words.append(one_of(str(a) for a in args))
        elif origin in (list, tuple):
            words.append(f"a list of {_MANY.get(args[0], 'values')}" if args else "a list")
        elif origin in (dict, Mapping):
            words.append(f"a mapping to {_MANY.get(args[1], 'values')}" if args else "a mapping")
        else:
            words.append(_WORDS.get(member, str(member)))
    if is_optional(hint):
        words.append("null")
    return " or ".join(words)
