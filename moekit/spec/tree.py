"""A spec as a tree of plain data: read from YAML text, with the place of each part, and the report of its mistakes.

No tags, no code. Where YAML 1.1 and 1.2 differ, 1.2 counts: ``1e-4`` is a number, ``yes`` and ``12:30`` are text. A
repeated key, a key that is not text, a tag and ``<<`` are mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, NoReturn, TypeGuard

import yaml

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


def is_reference(value: Any) -> TypeGuard[str]:
    """Whether this is text with an interpolation in it."""
    return isinstance(value, str) and "${" in value


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


_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$")
_TAGS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (_INT, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}
_PREFIX = "tag:yaml.org,2002:"
_TEXT = f"{_PREFIX}str"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own protocol


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def represent_list(self, data: list[Any]) -> yaml.Node:
        return self.represent_sequence(f"{_PREFIX}seq", data, flow_style=True)  # type: ignore[no-any-return]


for _name, (_pattern, _first) in _TAGS.items():
    _Loader.add_implicit_resolver(_PREFIX + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_PREFIX + _name, _pattern, _first)  # quotes text that reading would convert
_Dumper.add_representer(list, _Dumper.represent_list)


def write(plain: Any) -> str:
    """Plain data as YAML text, in the order of its keys; ``read`` returns the same data.

    A list or mapping that occurs twice in it is written once, with an alias: ``to_plain`` makes each anew.
    """
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120, allow_unicode=True)


def read(text: str, source: str, *, lines: bool = True, prefix: Keys = (), plugin: str = "") -> Tree:
    """One YAML document as plain data, with the place of every key.

    Args:
        text: the document.
        source: its name in messages: a file's name, or ``command line``.
        lines: whether places have line numbers.
        prefix: path of the document in a larger tree.
        plugin: name of the plugin that ships the file.

    Raises:
        SpecError: with the first mistake in the YAML; or, in valid YAML, with everything that a spec may not hold.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None and lines else 0
        said = ", ".join(part for part in (error.context, error.problem) if part)
        if mark is not None and text.startswith("\t", mark.index):
            said = "a tab, where YAML is indented by spaces"
        reject(f"not valid YAML: {said}", at=prefix, place=Place(source, line))
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        reject(f"not valid YAML: {' '.join(str(error).split())}", at=prefix, place=Place(source))
    reader = _Reader(source, lines, plugin)
    data = None if root is None else reader.value(root, prefix)
    reader.report.raise_if_any()
    return Tree(data, reader.places)


class _Reader:
    def __init__(self, source: str, lines: bool, plugin: str) -> None:
        self.source = source
        self.lines = lines
        self.plugin = plugin
        self.count = 1
        self.places: dict[Keys, Place] = {}
        self.report = Report(self.places)

    def value(self, node: yaml.Node, path: Keys) -> Any:
        if not self.places:
            self.places[path] = Place(self.source, 0, self.plugin)
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag == _TEXT else self.scalar(node, path)
        self.count += len(node.value)
        if len(path) >= MAX_DEPTH or self.count > MAX_NODES:
            check_size((*path, 0) if node.value else path, self.count, self.source)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            out = []
            for i, item in enumerate(node.value):
                self.places[(*path, i)] = self.place(item)
                out.append(self.value(item, (*path, i)))
            return out
        return self.reject_tag(node, path)

    def mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            place = Place(self.source, key_node.start_mark.line + 1 if self.lines else 0, self.plugin)
            if not isinstance(key_node, yaml.ScalarNode) or (key_node.tag != _TEXT and key != "<<"):
                said = f"key {key}" if isinstance(key_node, yaml.ScalarNode) else "a key"
                self.report.add(path, f"{said} is not text", expected="a name, in quotes if need be", place=place)
                continue
            here = (*path, key)
            if key == "<<" and not key_node.style:
                self.report.add(path, "'<<' is not supported", expected="'extends' to inherit a file", place=place)
            elif key in out:
                first = f", first in line {self.places[here].line}" if self.lines else ""
                self.report.add(here, f"key '{key}' occurs twice{first}", place=place)
            else:
                self.places[here] = place
                out[key] = self.value(value_node, here)
        return out

    def scalar(self, node: yaml.ScalarNode, path: Keys) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_PREFIX)
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text.replace("_", ""), 0)
                case "float":
                    bare = text.replace("_", "").lower()
                    return float(bare.replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            return self.report.add(path, f"'{text[:40]}' is not a YAML {kind}", place=self.place(node))
        return self.reject_tag(node, path)

    def reject_tag(self, node: yaml.Node, path: Keys) -> None:
        tag = node.tag.replace(_PREFIX, "!!")
        self.report.add(path, f"tag '{tag}' is not supported", expected="plain values", place=self.place(node))

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.lines else 0, self.plugin)
