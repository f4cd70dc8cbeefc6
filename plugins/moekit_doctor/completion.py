"""What can stand next on a command line: verbs, their options, names, keys of a recipe and their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moekit.cli.core import VERBS
from moekit.cli.verbs import Parser, find, parser_of
from moekit.component import Offer
from moekit.discovery import BUILTIN
from moekit.errors import MoekitError
from moekit.registry import Registry, current
from moekit.spec.fields import FieldInfo, Spec, fields_of
from moekit.spec.loading import load

RUNS = Path("runs")
"""Where runs are, unless ``--out`` says otherwise."""


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word can become; empty for file names, or where nothing fits.

    A candidate that ends with ``.`` or ``=`` is to be continued.

    Args:
        words: those after ``moekit``, if any; the last is the beginning of a word, or empty.
    """
    *before, word = words or [""]
    if not before:
        found: Iterable[str] = ["--help", "--version"] if word.startswith("-") else sorted({*VERBS, *_plugin_verbs()})
        return _beginning(word, found)
    try:
        parser = parser_of(find(before[0]))
    except MoekitError:
        return []
    return _beginning(word, _next(before[0], parser, before[1:], word))


def _next(verb: str, parser: Parser, before: Sequence[str], word: str) -> Iterable[str]:
    actions = parser.arguments
    options = {name: action for action in actions for name in action.option_strings}
    if word.startswith("-"):
        return options
    if before and before[-1] in options and options[before[-1]].nargs != 0:
        return _value(options[before[-1]])
    places = [action for action in actions if not action.option_strings]
    after = zip(["", *before], before, strict=False)
    names = [
        each for last, each in after if not each.startswith("-") and "=" not in each and last not in _taking(options)
    ]
    takes_keys = any("=" in str(place.metavar) for place in places)
    if takes_keys and (found := _keys(names, word)):
        return found
    for place in places:
        many = place.nargs in ("*", "+", argparse.REMAINDER)
        if not names or many:
            return _named(verb, place)
        names = names[1:]
    return []


def _taking(options: Mapping[str, argparse.Action]) -> set[str]:
    return {name for name, action in options.items() if action.nargs != 0}


def _value(action: argparse.Action) -> Iterable[str]:
    return [str(choice) for choice in action.choices] if action.choices else []


def _named(verb: str, place: argparse.Action) -> Iterable[str]:
    """What can stand in a place: its choices, those that its placeholder lists, or names of what it is called after."""
    if place.choices:
        return _value(place)
    metavar = place.metavar if isinstance(place.metavar, str) else ""
    if re.fullmatch(r"[a-z]+(\|[a-z]+)+", metavar):
        return metavar.split("|")
    names = NAMES.get((verb, place.dest)) or NAMES.get(("", place.dest))
    return names(current()) if names else []


def _recipes(registry: Registry) -> list[str]:
    return _short(registry, registry.recipes)


def _components(registry: Registry) -> list[str]:
    return [f"{each.kind}/{each.name}" for each in registry.components()]


def _plugin_verbs() -> list[str]:
    registry = current()
    verbs = [verb for verb in registry.verbs if verb.plugin != BUILTIN and "." not in verb.name]  # not their actions
    return _short(registry, verbs)


def _short(registry: Registry, offers: Iterable[Offer]) -> list[str]:
    return [registry.short_name(each) for each in offers]


def _runs(registry: Registry) -> list[str]:
    """Names of runs, and the folders of each."""
    names = [path for path in sorted(RUNS.glob("*")) if path.is_dir()]
    return [path.name for path in names] + [run.as_posix() for path in names for run in sorted(path.glob("*"))]


NAMES: Mapping[tuple[str, str], Callable[[Registry], Iterable[str]]] = {
    ("", "recipe"): _recipes,
    ("", "name"): _recipes,
    ("", "sources"): _recipes,
    ("", "run"): _runs,
    ("", "runs"): _runs,
    ("ls", "kind"): lambda registry: [kind.plural for kind in registry.kinds.values()] + ["kinds", "recipes", "runs"],
    ("show", "name"): lambda registry: _components(registry) + _recipes(registry),
    ("check", "names"): _components,
    ("bench", "names"): _recipes,
    ("new", "kind"): lambda registry: [*registry.kinds, "verb"],
    ("new", "name"): lambda registry: [],
    ("reproduce", "names"): lambda registry: registry.names("claim"),
    ("help", "verb"): lambda registry: [*VERBS, *_plugin_verbs()],
}
"""Names for an argument of a verb, or of any verb; the argument is called by its ``dest``."""


def _keys(names: Sequence[str], word: str) -> list[str]:
    """Keys of the first name that is a recipe, up to the next dot; after ``=``, the values that a key can have."""
    recipe = next((found for name in names if (found := _loaded(name)) is not None), None)
    if recipe is None:
        return []
    key, is_value, _ = word.partition("=")
    *parents, last = key.split(".")
    at: Any = recipe
    for name in parents:
        at = at.get(name) if isinstance(at, Mapping) else getattr(at, name, None)
    if is_value:
        return [f"{key}={value}" for value in _values(at, last)]
    start = "".join(f"{name}." for name in parents)
    return [start + name for name in _inside(at, bool(parents))]


def _loaded(name: str) -> Spec | None:
    try:
        return load(name)
    except (MoekitError, OSError):
        return None


def _inside(at: Any, has_use: bool) -> Iterator[str]:
    """The keys of a part of a recipe: ``router.`` for a part of it, ``top_k=`` for an option."""
    if isinstance(at, Mapping):
        yield from (f"{name}." if isinstance(held, Spec | Mapping) else f"{name}=" for name, held in at.items())
    elif isinstance(at, Spec):
        kind: str = getattr(at, "kind", "")
        if has_use and kind:
            yield "use="
        for name in fields_of(type(at)):
            held = getattr(at, name)
            yield f"{name}." if isinstance(held, Spec) or (isinstance(held, Mapping) and held) else f"{name}="


def _values(at: Any, last: str) -> Iterable[str]:
    """Values of a key: names of components after ``use``, the choices of an option, true and false."""
    if not isinstance(at, Spec):
        return []
    if last == "use":
        return _components_of(str(getattr(at, "kind", None)))
    info = fields_of(type(at)).get(last)
    return [] if info is None else _choices(info)


def _components_of(kind: str) -> list[str]:
    registry = current()
    return _short(registry, registry.components(kind)) if kind in registry.kinds else []


def _choices(info: FieldInfo) -> list[str]:
    if bool in info.scalars:
        return ["true", "false"]
    return [str(choice) for choice in info.choices]


def _beginning(word: str, found: Iterable[str]) -> list[str]:
    return [each for each in dict.fromkeys(found) if each.startswith(word)]
