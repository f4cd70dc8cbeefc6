"""How a component declares its options: ``Spec``, a frozen dataclass with four kinds of field.

``option`` is a plain value, ``slot`` holds one component, ``slots`` a named map of components, and ``group`` another
spec class that has no ``use``. A spec is valid by construction, from YAML and from Python alike: ``__post_init__``
checks types, ranges and choices, and ``check`` checks rules between fields.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self, TypeVar, cast

from moekit.errors import PluginError, nearest

FieldKind = Literal["option", "slot", "slots", "group"]
_F = TypeVar("_F", bound=Callable[..., Any])
LARGEST = 2**64 - 1
"""The largest integer of an option, and of a seed: torch has none that is larger."""


def cached(function: _F) -> _F:
    """``functools.cache`` with the signature kept: mypy treats a class as not hashable."""
    return cast(_F, cache(function))


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
            f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in dataclasses.fields(made)
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
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._defaults)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Record) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def _values(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self._defaults]


def defaults_of(record: type[Record]) -> Mapping[str, Any]:
    """The default of each field, shared: do not change it. ``dataclasses.MISSING`` if the field must be given."""
    return record._defaults


class FieldInfo(NamedTuple):
    """What a spec field may hold: the kind of field, the component kind of a slot, a help text and a range.

    ``fields_of`` adds what the class says of it: its type, its default, and what follows from the type.
    """

    kind: FieldKind
    help: str
    component: str = ""  # the component kind that a slot takes
    claimed: bool = False  # whether a slot that is not given gets the component that claims to be the kind's default
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    finite: bool = True  # whether infinity is refused
    type: Any = Any
    default: Any = MISSING  # shared: do not change it; ``dataclasses.MISSING`` if the field must be given
    scalars: frozenset[Any] = frozenset()  # the scalar classes in the type: a value of one of them needs no conversion
    specs: tuple[Any, ...] = ()  # the spec classes in the type of a slot, a map of slots or a group

    def range_text(self) -> str:
        """The range as text: ``>= 1``, ``one of softmax, sigmoid``; empty where there is no limit."""
        if self.choices:
            return "one of " + ", ".join(str(c) for c in self.choices)
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)

    def fault(self, value: Any) -> str:
        """What is wrong with a value of the right type, or with one in it: ``is out of range``; empty if nothing is."""
        if isinstance(value, Mapping | list | tuple):
            return next(filter(None, map(self.fault, value.values() if isinstance(value, Mapping) else value)), "")
        if not isinstance(value, int | float):
            return ""
        if isinstance(value, float) and (math.isnan(value) or (self.finite and math.isinf(value))):
            return "is not finite"
        fits = (
            (isinstance(value, float) or abs(value) <= LARGEST)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )
        return "" if fits else "is out of range"


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    finite: bool = True,
) -> Any:
    """A plain value: int, float, bool, str, a ``Literal`` of choices, ``list[...]``, ``dict[str, ...]``, or None.

    Args:
        default: without one, the option must be given.
        help: one line: the meaning, and the unit if there is one.
        ge, gt, le, lt: bounds of a number, or of each number in a list.
        finite: whether infinity is refused; NaN always is.
    """
    about = {"moekit": FieldInfo("option", help, ge=ge, gt=gt, le=le, lt=lt, finite=finite)}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def slot(component: str, help: str = "", *, optional: bool = False, default: Any = None) -> Any:
    """One component of kind ``component``: ``{use: name, ...}`` in YAML, its spec in Python.

    Args:
        component: the kind.
        help: one line.
        optional: whether there may be none.
        default: ``"kind"``: where none is given, the component of the kind that claims to be the default
            (``Component(default=True)``); a spec made in Python needs one nevertheless. Or a spec, for both.
    """
    claimed = default == "kind"
    absent = None if optional else MISSING if claimed or default is None else default
    return dataclasses.field(default=absent, metadata={"moekit": FieldInfo("slot", help, component, claimed=claimed)})


def slots(component: str, help: str = "") -> Any:
    """A map of components by name, empty by default. An override can change or delete one entry by its name."""
    return dataclasses.field(default_factory=dict, metadata={"moekit": FieldInfo("slots", help, component)})


def group(help: str = "", *, default: Any = MISSING) -> Any:
    """Options and slots of another spec class, which has no ``use``; ``default=None`` makes the group optional."""
    return dataclasses.field(default=default, metadata={"moekit": FieldInfo("group", help)})


class ConflictError(ValueError):
    """Invalid options, alone or together; ``sentences`` has one sentence for each conflict."""

    def __init__(self, *sentences: str) -> None:
        self.sentences = sentences
        super().__init__("; ".join(sentences))


class MetricInfo(NamedTuple):
    """How a metric is shown. Components declare theirs by ``Spec.metrics``.

    Attributes:
        label: the metric in words.
        unit: such as ``nats per token``; empty for none.
        lower_is_better: False for a score such as BLEU.
        headline: whether it is the main metric of a run; else the loss is.
        digits: decimal places.
        live: whether it is shown next to the loss during training.
    """

    label: str
    unit: str = ""
    lower_is_better: bool = True
    headline: bool = False
    digits: int = 3
    live: bool = False

    def format(self, value: float) -> str:
        """The value with ``digits`` decimal places."""
        return f"{value:,.{self.digits}f}"

    def with_unit(self) -> str:
        """The label, with the unit in brackets if there is one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


class Spec(Record):
    """Base of every spec. A subclass is a frozen dataclass with keyword arguments; it needs no decorator.

    Raises:
        ConflictError: (a ``ValueError``) on construction: an option has another type or is out of range, or
            ``check`` found conflicts.
        TypeError: an argument is unknown or missing.
    """

    kind: ClassVar[str] = ""

    def check(self) -> Iterable[str]:
        """Conflicts between options, one sentence each. Override; every field is set and in range when it is called."""
        return ()

    def metrics(self) -> Mapping[str, MetricInfo]:
        """The metrics that this component logs, by name, without ``train/`` or ``val/``. Override where it logs any."""
        return {}

    def __post_init__(self) -> None:
        spec = type(self)
        check_declaration(spec)  # also of the defaults, so that only what is given is checked here
        known = fields_of(spec).items()
        held = ((name, value) for name, info in known if (value := getattr(self, name)) is not info.default)
        problems = list(_problems(spec, held).values()) or self._conflicts()
        if problems:
            raise ConflictError(*problems)

    @classmethod
    def of_valid(cls, values: Mapping[str, Any]) -> Self:
        """A spec of values that have their types and are in range, as those of YAML were read; ``check`` runs.

        Raises:
            ConflictError: ``check`` found conflicts.
        """
        if cls.__init__ is not Record.__init__ or cls.__post_init__ is not Spec.__post_init__:
            return cls(**values)
        check_declaration(cls)
        made = cls.__new__(cls)
        for name, default in cls._defaults.items():
            held = values[name] if name in values else default
            made.__dict__[name] = held.copy() if held is default and isinstance(held, dict | list) else held
        if problems := made._conflicts():
            raise ConflictError(*problems)
        return made

    def _conflicts(self) -> list[str]:
        """What ``check`` says.

        Raises:
            PluginError: ``check`` itself fails: the mistake is in the plugin, not in the options.
        """
        if type(self).check is Spec.check:
            return []
        here = f"{type(self).__module__}:{type(self).__qualname__}.check"
        try:
            said: Any = self.check()
            found = None if said is None else list(said)
        except Exception as error:
            raise PluginError(f"{here} raised {type(error).__name__}: {error}") from error
        if found is None or not all(isinstance(sentence, str) for sentence in found):
            raise PluginError(f"{here} returned {said!r}; expected sentences: yield one for each conflict")
        return found


def metrics_of(spec: Spec, *, without: str = "") -> dict[str, MetricInfo]:
    """The metrics that a spec and all components in it declare; of a name declared twice, the first.

    Components of the kind ``without`` are skipped.
    """
    found = {} if type(spec).metrics is Spec.metrics else dict(spec.metrics())
    for name, info in fields_of(type(spec)).items():
        held = getattr(spec, name)
        for part in held.values() if info.kind == "slots" else [held]:
            if isinstance(part, Spec) and info.component != (without or None):
                found = metrics_of(part, without=without) | found
    return found


def _problems(spec: type[Spec], held: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """The mistakes in the values of some fields, each value by itself."""
    known, found = fields_of(spec), {}
    for name, value in held:
        info, said = known[name], ""
        if info.kind != "option":
            said = "" if value is None and info.default is None else _misplaced(info, name, value)
        elif type(value) not in info.scalars and not is_a(value, info.type):
            said = f"{name}: {value!r} is not {describe(info.type)}"
            if info.choices:
                said = f"{name}={value!r} is out of range ({info.range_text()})"
        elif type(value) not in (bool, str, type(None)) and (fault := info.fault(value)):
            said = f"{name}={value!r} {fault}" + (f" ({info.range_text()})" if fault == "is out of range" else "")
        if said:
            found[name] = said
    return found


def _misplaced(info: FieldInfo, name: str, value: Any) -> str:
    """Why a slot, a map of slots or a group cannot hold a value made in Python; empty if it can."""
    if info.kind == "group":
        cls = info.specs[0]
        return "" if isinstance(value, cls) else f"{name} is {_named(value)}; expected {cls.__name__}(...)"
    if info.kind == "slots" and not isinstance(value, Mapping):
        return f"{name} is {_named(value)}; expected a mapping from names to specs of {info.component}s"
    parts = {f"{name}[{key!r}]": each for key, each in value.items()} if info.kind == "slots" else {name: value}
    for where, each in parts.items():
        if not isinstance(each, Spec) or (each.kind != info.component and type(each) not in info.specs):
            expected = f"the spec of a component of kind '{info.component}' (list them: moekit ls {info.component})"
            return f"{where} is {_named(each)}; expected {expected}"
    return ""


def _named(value: Any) -> str:
    """What a value is: ``LoadBalance (a spec of kind 'balancer')``, ``the class TopK``, ``a dict``, ``None``."""
    if isinstance(value, Spec):
        return type(value).__name__ + (f" (a spec of kind '{value.kind}')" if value.kind else "")
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"


# The declared types of options.


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without None; of another type, that type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
    return (hint,)


def is_optional(hint: Any) -> bool:
    """Whether null is a value of this type."""
    return hint in (None, type(None)) or type(None) in typing.get_args(hint)


_SCALARS = frozenset({int, float, bool, str, type(None)})
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "a plain value"}
_MANY = {int: "integers", float: "numbers", bool: "true or false", str: "text", Any: "plain values"}


def describe(hint: Any) -> str:
    """A type as messages describe it: ``an integer``, ``a list of numbers``, ``text or null``."""
    words = []
    for member in members(hint):
        origin, args = typing.get_origin(member) or member, typing.get_args(member)
        if origin is Literal:
            words.append(one_of(map(str, args)))
        elif origin in (list, tuple):
            words.append(f"a list of {_MANY.get(args[0], 'values')}" if args else "a list")
        elif origin in (dict, Mapping):
            words.append(f"a mapping to {_MANY.get(args[1], 'values')}" if args else "a mapping")
        else:
            words.append(_WORDS.get(member, str(member)))
    return " or ".join([*words, "null"] if is_optional(hint) else words)


def one_of(names: Iterable[str]) -> str:
    """``one of a, b, c``, as messages list a few choices."""
    return "one of " + ", ".join(names)


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value has a declared plain type: an int counts as a float, a bool not as a number."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        each = args if origin is tuple and ... not in args else (args[0],) * len(value)
        return len(value) == len(each) and all(map(is_a, value, each))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return hint is Any or origin is not None or not isinstance(hint, type) or isinstance(value, hint)


@cached
def is_plain(hint: Any) -> bool:
    """Whether YAML can hold values of this type."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is Literal or hint in (int, float, bool, str, Any, None, type(None), list, dict, tuple):
        return True
    if origin in (dict, Mapping):
        return args[0] is str and is_plain(args[1])
    return origin in (list, tuple, typing.Union, types.UnionType) and all(a is ... or is_plain(a) for a in args)


# What a spec class declares. Each answer is computed once.


@cached
def fields_of(spec: type[Spec]) -> dict[str, FieldInfo]:
    """What each field of a spec class may hold, in order of declaration.

    Raises:
        TypeError: a field is a plain dataclass field, not declared with ``option`` and the like, or a group is of
            another type than one spec class.
    """
    out: dict[str, FieldInfo] = {}
    hints, defaults = typing.get_type_hints(spec), spec._defaults
    for f in dataclasses.fields(spec):
        info = f.metadata.get("moekit")
        if info is None:
            raise TypeError(f"{spec.__qualname__}.{f.name}: declare it with option(), slot(), slots() or group()")
        hint = hints[f.name]
        info = info._replace(type=hint, default=defaults[f.name])
        if info.kind != "option":
            out[f.name] = info._replace(specs=specs_in(hint))
            if info.kind == "group" and len(out[f.name].specs) != 1:
                raise TypeError(f"{spec.__qualname__}.{f.name}: a group's type is one spec class, or that class | None")
            continue
        parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        values = [part for part in parts if part is not type(None)]
        choices = typing.get_args(values[0]) if len(values) == 1 and typing.get_origin(values[0]) is Literal else ()
        out[f.name] = info._replace(scalars=_SCALARS.intersection(parts), choices=choices)
    return out


@cached
def check_declaration(spec: type[Spec]) -> None:
    """Checks that a spec class declares its fields properly.

    Raises:
        TypeError: a field is not declared with ``option`` and the like, its type is unknown or none that YAML can hold,
            or a slot is annotated with the spec of another kind.
        ValueError: a default is none that the field can hold.
    """
    try:
        known = fields_of(spec)
    except NameError as error:
        raise TypeError(f"{spec.__qualname__}: cannot read the types of its fields: {error}") from error
    for name, info in known.items():
        where = f"{spec.__qualname__}.{name}"
        if info.kind == "option" and not is_plain(info.type):
            raise TypeError(
                f"{where}: an option of type {describe(info.type)}; int, float, bool, str, Literal, list, "
                "tuple and dict of these, and None, can be read from YAML"
            )
        if info.kind == "slot" and (kinds := {cls.kind for cls in info.specs} - {info.component, ""}):
            raise TypeError(f"{where}: a slot of kind '{info.component}' with the type of kind '{min(kinds)}'")
    given = ((name, info.default) for name, info in known.items() if info.default is not MISSING)
    for name, problem in _problems(spec, given).items():
        info, where = known[name], f"{spec.__qualname__}.{name}"
        if info.kind != "option":
            raise ValueError(f"{where}: its default: {problem}")
        expected = " ".join(filter(None, [describe(info.type), "" if info.choices else info.range_text()]))
        raise ValueError(f"{where}: its default {info.default!r} is not {expected}")


@cached
def specs_in(hint: Any) -> tuple[type[Spec], ...]:
    """The spec classes of a type: itself, the members of a union, or those of the values of a mapping."""
    parts = [hint]
    for part in parts:  # which grows
        parts += typing.get_args(part)
    return tuple(part for part in parts if isinstance(part, type) and issubclass(part, Spec))


def required(spec: type[Spec]) -> list[str]:
    """Names of the fields that have no default."""
    return [name for name, default in defaults_of(spec).items() if default is MISSING]
