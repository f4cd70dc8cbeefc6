"""How a component declares its options: one frozen dataclass with four kinds of field.

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
from dataclasses import MISSING
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from moekit.errors import PluginError
from moekit.record import Record, defaults_of
from moekit.spec.hints import describe

FieldKind = Literal["option", "slot", "slots", "group"]
LARGEST = 2**64 - 1
"""The largest integer of an option, and of a seed: torch has none that is larger."""

_F = TypeVar("_F", bound=Callable[..., Any])


def _cached(function: _F) -> _F:
    """``functools.cache`` with the signature kept: mypy treats a class as not hashable."""
    return cast(_F, cache(function))


class FieldInfo(NamedTuple):
    """What a spec field may hold: the kind of field, the component kind of a slot, a help text and a range."""

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

    def range_text(self) -> str:
        """The range as text: ``>= 1``, ``one of softmax, sigmoid``; empty where there is no limit."""
        if self.choices:
            return "one of " + ", ".join(str(c) for c in self.choices)
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)

    def allows(self, value: Any) -> bool:
        """Whether ``value``, which already has the right type, is in the range; of a list, whether every item is."""
        if value is None:
            return True
        if isinstance(value, list | tuple):
            return all(self.allows(item) for item in value)
        if isinstance(value, int) and abs(value) > LARGEST:
            return False
        if self.choices:
            return value in self.choices
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def _field(info: FieldInfo, default: Any) -> Any:
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata={"moekit": info})
    return dataclasses.field(default=default, metadata={"moekit": info})


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
    return _field(FieldInfo("option", help, ge=ge, gt=gt, le=le, lt=lt, finite=finite), default)


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
    return _field(FieldInfo("slot", help, component, claimed=claimed), absent)


def slots(component: str, help: str = "") -> Any:
    """A map of components by name, empty by default. An override can change or delete one entry by its name."""
    return _field(FieldInfo("slots", help, component), {})


def group(help: str = "", *, default: Any = MISSING) -> Any:
    """Options and slots of another spec class, which has no ``use``; ``default=None`` makes the group optional."""
    return _field(FieldInfo("group", help), default)


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
        problems = [p for name in fields_of(type(self)) if (p := self._problem_of(name))] or self._conflicts()
        if problems:
            raise ConflictError(*problems)

    def _problem_of(self, name: str) -> str:
        """The mistake in one field's value by itself; empty if there is none."""
        info, hint, value = fields_of(type(self))[name], types_of(type(self))[name], getattr(self, name)
        if info.kind != "option":
            return _misplaced(type(self), name, value)
        if not info.choices and not is_a(value, hint):
            return f"{name}: {value!r} is not {describe(hint)}"
        if info.finite and not is_finite(value):
            return f"{name}={value!r} is not finite"
        return "" if info.allows(value) else f"{name}={value!r} is out of range ({info.range_text()})"

    def _conflicts(self) -> list[str]:
        """What ``check`` says.

        Raises:
            PluginError: ``check`` itself fails: the mistake is in the plugin, not in the options.
        """
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
    found = dict(spec.metrics())
    for name, info in fields_of(type(spec)).items():
        held = getattr(spec, name)
        for part in held.values() if info.kind == "slots" else [held]:
            if isinstance(part, Spec) and info.component != (without or None):
                found = metrics_of(part, without=without) | found
    return found


def _is_part(value: Any, kind: str, hint: Any) -> bool:
    """Whether a slot of ``kind`` may hold a value: a spec of that kind, or of a class that the annotation names."""
    return isinstance(value, Spec) and (value.kind == kind or type(value) in _leaves(hint))


def _leaves(hint: Any) -> tuple[Any, ...]:
    """The classes that a type is made of."""
    return tuple(leaf for arg in typing.get_args(hint) for leaf in _leaves(arg)) or (hint,)


def _misplaced(spec: type[Spec], name: str, value: Any) -> str:
    """Why a slot, a map of slots or a group cannot hold a value made in Python; empty if it can."""
    info = fields_of(spec)[name]
    if value is None and default_of(spec, name) is None:
        return ""
    if info.kind == "group":
        cls = group_class(spec, name)
        return "" if isinstance(value, cls) else f"{name} is {_named(value)}; expected {cls.__name__}(...)"
    if info.kind == "slots" and not isinstance(value, Mapping):
        return f"{name} is {_named(value)}; expected a mapping from names to specs of {info.component}s"
    parts = {f"{name}[{key!r}]": each for key, each in value.items()} if info.kind == "slots" else {name: value}
    for where, each in parts.items():
        if not _is_part(each, info.component, types_of(spec)[name]):
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


def is_finite(value: Any) -> bool:
    """Whether no number in a plain value is infinite or NaN."""
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value has a declared plain type: an int counts as a float, a bool not as a number."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, arg) for arg in args)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        each = args if origin is tuple and ... not in args else (args[0],) * len(value)
        return len(value) == len(each) and all(map(is_a, value, each))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return hint is Any or origin is not None or not isinstance(hint, type) or isinstance(value, hint)


@_cached
def types_of(spec: type[Spec]) -> dict[str, Any]:
    """The type of each field, in order of declaration."""
    hints = typing.get_type_hints(spec)
    return {f.name: hints[f.name] for f in dataclasses.fields(spec)}


@_cached
def fields_of(spec: type[Spec]) -> dict[str, FieldInfo]:
    """What each field of a spec class may hold, in order of declaration.

    Raises:
        TypeError: a field is a plain dataclass field, not declared with ``option`` and the like.
    """
    out: dict[str, FieldInfo] = {}
    for f in dataclasses.fields(spec):
        info = f.metadata.get("moekit")
        if info is None:
            raise TypeError(f"{spec.__qualname__}.{f.name}: declare it with option(), slot(), slots() or group()")
        choices = literal_choices(types_of(spec)[f.name])
        out[f.name] = info._replace(choices=choices) if choices else info
    return out


@_cached
def check_declaration(spec: type[Spec]) -> None:
    """Checks that a spec class declares its fields properly.

    Raises:
        TypeError: a field is not declared with ``option`` and the like, its type is unknown or none that YAML can hold,
            or a slot is annotated with the spec of another kind.
        ValueError: the default of an option is not in its range.
    """
    try:
        known = fields_of(spec)
    except NameError as error:
        raise TypeError(f"{spec.__qualname__}: cannot read the types of its fields: {error}") from error
    for name, info in known.items():
        hint, default = types_of(spec)[name], default_of(spec, name)
        where = f"{spec.__qualname__}.{name}"
        if info.kind == "option":
            if not is_plain(hint):
                raise TypeError(
                    f"{where}: an option of type {describe(hint)}; int, float, bool, str, Literal, list, "
                    "tuple and dict of these, and None, can be read from YAML"
                )
            if default is not MISSING and not (info.allows(default) and (info.choices or is_a(default, hint))):
                expected = " ".join(filter(None, [describe(hint), "" if info.choices else info.range_text()]))
                raise ValueError(f"{where}: its default {default!r} is not {expected}")
        elif info.kind == "slot":
            kinds = {cls.kind for cls in _specs_in(hint)}
            if kinds - {info.component, ""}:
                raise TypeError(f"{where}: a slot of kind '{info.component}' with the type of kind '{min(kinds)}'")


def is_plain(hint: Any) -> bool:
    """Whether YAML can hold values of this type."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is Literal or hint in (int, float, bool, str, Any, None, type(None), list, dict, tuple):
        return True
    if origin in (dict, Mapping):
        return args[0] is str and is_plain(args[1])
    return origin in (list, tuple, typing.Union, types.UnionType) and all(a is ... or is_plain(a) for a in args)


def literal_choices(hint: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` (also inside ``... | None``), else an empty tuple."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return args
    inner = [a for a in args if a is not type(None)]
    return literal_choices(inner[0]) if len(inner) == 1 and len(args) == 2 else ()


def group_class(spec: type[Spec], name: str) -> type[Spec]:
    """The spec class of a group, also inside ``... | None``.

    Raises:
        TypeError: the field has another type.
    """
    classes = _specs_in(types_of(spec)[name])
    if len(classes) != 1:
        raise TypeError(f"{spec.__qualname__}.{name}: a group's type is one spec class (or that class | None)")
    return classes[0]


def _specs_in(hint: Any) -> list[type[Spec]]:
    """The spec classes of a type: itself, or the members of a union."""
    return [arg for arg in typing.get_args(hint) or (hint,) if isinstance(arg, type) and issubclass(arg, Spec)]


def required(spec: type[Spec]) -> list[str]:
    """Names of the fields that have no default."""
    return [name for name, default in defaults_of(spec).items() if default is MISSING]


def default_of(spec: type[Spec], name: str) -> Any:
    """The default of a field, shared: do not change it. ``dataclasses.MISSING`` if the field must be given."""
    return defaults_of(spec)[name]
