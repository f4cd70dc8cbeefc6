"""``Record``: the base of frozen dataclasses that are quick to define."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import Any, ClassVar, NoReturn

from moekit.errors import nearest


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A frozen dataclass with keyword arguments. A subclass needs no decorator; ``__post_init__`` may check its fields.

    Its methods are inherited, because ``dataclass`` would compile new ones for each class, which slows the start of
    every command.

    Raises:
        TypeError: an argument is unknown or missing.
    """

    refused: ClassVar[Mapping[str, str]] = {}  # names that a user may expect among the options, and why they are none
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        made: Any = dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)
        cls._defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(made)
        }

    def __init__(self, **given: Any) -> None:
        known, values = self._defaults, self.__dict__
        if not given.keys() <= known.keys():
            raise TypeError(self._unknown(next(name for name in given if name not in known)))
        for name, default in known.items():
            value = given.get(name, default)
            if value is MISSING:
                raise TypeError(f"{type(self).__name__} needs {name}=...")
            values[name] = value.copy() if value is default and isinstance(value, dict | list) else value
        if (check := getattr(self, "__post_init__", None)) is not None:
            check()

    def _unknown(self, name: str) -> str:
        near = nearest(name, list(self._defaults))
        hint = f"did you mean {near}?" if near else f"options are {', '.join(self._defaults) or 'none'}"
        return f"{type(self).__name__} has no option {name}; {self.refused.get(name, hint)}"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field '{name}'; make another with dataclasses.replace")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field '{name}'")

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self._values())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Record) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def _values(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self._defaults]


def defaults_of(record: type[Record]) -> Mapping[str, Any]:
    """The default of each field, shared: do not change it. ``dataclasses.MISSING`` if the field must be given."""
    return record._defaults
