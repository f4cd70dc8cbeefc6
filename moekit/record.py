"""``Record``: the base of frozen dataclasses that are quick to define."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import Any, ClassVar, NoReturn

from moekit.errors import nearest


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A frozen dataclass with keyword arguments. A subclass needs no decorator.

    Its methods are inherited, because ``dataclass`` would compile new ones for each class, which slows the start of
    every command.

    Raises:
        TypeError: an argument is unknown or missing.
    """

    refused: ClassVar[Mapping[str, str]] = {}  # names that a user may expect among the options, and why they are none

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False, kw_only=True)(cls)

    def __init__(self, **given: Any) -> None:
        cls, values, known = type(self), self.__dict__, defaults_of(type(self))
        for name in given:
            if name not in known:
                near = nearest(name, list(known))
                hint = f"did you mean {near}?" if near else f"options are {', '.join(known) or 'none'}"
                raise TypeError(f"{cls.__name__} has no option {name}; {cls.refused.get(name, hint)}")
        for name, default in known.items():
            if name not in given and default is MISSING:
                raise TypeError(f"{cls.__name__} needs {name}=...")
            value = given.get(name, default)
            values[name] = value.copy() if value is default and isinstance(value, dict | list) else value
        self.__post_init__()

    def __post_init__(self) -> None:
        """Called once every field is set. Override to check them."""

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
        return [(name, getattr(self, name)) for name in defaults_of(type(self))]


_known: dict[type, dict[str, Any]] = {}


def defaults_of(record: type) -> dict[str, Any]:
    """The default of each field, shared: do not change it. ``dataclasses.MISSING`` if the field must be given."""
    if record not in _known:
        _known[record] = {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(record)
        }
    return _known[record]
