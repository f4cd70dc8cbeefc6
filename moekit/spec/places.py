"""A tree of plain data with the place where each part was written, and the report of its mistakes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from moekit.errors import Problem, SpecError

Keys = tuple[str | int, ...]
"""The path of one part of a tree: keys of mappings and indices of lists."""

COMMAND_LINE: Final = "command line"

LEFT_OPEN: Final = "???"
"""OmegaConf's mark for a value that a file leaves to those that extend it."""

BROKEN: Final = object()
"""Takes the place of a value that has a mistake; the report has the reason."""

MAX_DEPTH: Final = 50
"""Levels of nesting that a spec may have. A recipe has about eight."""

MAX_NODES: Final = 10_000
"""Keys and items that one source of a spec may have, each use of an alias counted. A recipe has about a hundred."""


class Place(NamedTuple):
    """A file, as messages name it, and a line; line 0 means that there are no lines.

    ``plugin`` is the name of the plugin that ships the file: a short name in it means one of its companions first.
    """

    source: str
    line: int = 0
    plugin: str = ""

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


def check_size(path: Keys, count: int, source: str) -> None:
    """Rejects data that no spec needs and that would take minutes to read: an alias of aliases, a list in a list in ...

    Raises:
        SpecError: ``path`` is too deep, or ``count`` parts are too many.
    """
    if len(path) > MAX_DEPTH:
        what = "nested too deeply, or an alias that holds itself"
        reject(what, place=Place(source), expected=f"at most {MAX_DEPTH} levels")
    if count > MAX_NODES:
        what = f"more than {MAX_NODES:,} keys and items, counting each use of an alias"
        reject(what, place=Place(source), expected="a spec, which has some hundred")


class Tree(NamedTuple):
    """Plain data, and the place of every key in it."""

    data: Any
    places: dict[Keys, Place]


def show(path: Keys) -> str:
    """The path as messages have it: ``model.moe.at.layers[2]``."""
    out = ""
    for key in path:
        out += f"[{key}]" if isinstance(key, int) else f".{key}" if out else key
    return out


def found(value: Any) -> str:
    """The value as YAML has it, shortened: messages say it was found."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str | int | float):
        return f"an object of type {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "an integer of thousands of digits"  # which Python refuses to print
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Report:
    """Collects the problems of one spec, so that one error reports them all.

    Args:
        places: where the parts of the tree were written.
    """

    def __init__(self, places: Mapping[Keys, Place] | None = None) -> None:
        self.places: Mapping[Keys, Place] = {} if places is None else places
        self._found: dict[tuple[Place, Keys, Problem], None] = {}  # in order
        self._paths: set[Keys] = set()

    def place(self, path: Keys) -> Place:
        """The place of ``path``, or of its nearest parent that was written somewhere."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return Place("")

    def add(
        self,
        path: Keys,
        what: str,
        *,
        expected: str = "",
        nearest: str = "",
        list_with: str = "",
        notes: tuple[str, ...] = (),
        place: Place | None = None,
    ) -> Any:
        """Adds one problem at ``path``, once, and gives ``BROKEN``; without ``place``, the place is looked up."""
        place = self.place(path) if place is None else place
        at, source = show(path), str(place)
        problem = Problem(
            what=what, at=at, source=source, expected=expected, nearest=nearest, list_with=list_with, notes=notes
        )
        self._found[place, path, problem] = None
        self._paths.add(path)
        return BROKEN

    def __contains__(self, path: Keys) -> bool:
        return path in self._paths

    def __bool__(self) -> bool:
        return bool(self._found)

    def problems(self) -> list[Problem]:
        """The problems, by file and line."""
        sources = list(dict.fromkeys(place.source for place, _, _ in self._found))
        ordered = sorted(self._found, key=lambda item: (sources.index(item[0].source), item[0].line))
        return [problem for _, _, problem in ordered]

    def keep(self, wanted: Callable[[Keys, Collection[Keys]], bool]) -> None:
        """Keeps the problems with a ``wanted`` path, or all if none is; it is given a path and the paths of all."""
        self._found = {entry: None for entry in self._found if wanted(entry[1], self._paths)} or self._found

    def raise_if_any(self) -> None:
        """Raises if there is any problem.

        Raises:
            SpecError: with every problem.
        """
        if self._found:
            raise SpecError(self.problems())


def reject(
    what: str, *, at: Keys = (), place: Place | None = None, expected: str = "", list_with: str = ""
) -> NoReturn:
    """Rejects a spec with this one problem: for what must be right before anything else can be read.

    Raises:
        SpecError: always.
    """
    source = str(place) if place else ""
    raise SpecError([Problem(what=what, at=show(at), source=source, expected=expected, list_with=list_with)])


def one_of(names: Iterable[str]) -> str:
    """``one of a, b, c``, as messages list a few choices."""
    return "one of " + ", ".join(names)
