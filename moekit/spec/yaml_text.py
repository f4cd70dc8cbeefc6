"""Reads YAML text to a tree with the line of each key, and writes plain data as YAML. No tags, no code.

Where YAML 1.1 and 1.2 differ, 1.2 counts: ``1e-4`` is a number, ``yes`` and ``12:30`` are text. A repeated key, a key
that is not text, a tag and ``<<`` are mistakes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from moekit.spec.places import Keys, Place, Report, Tree, check_size, reject

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
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            self.enter(node, path)
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            self.enter(node, path)
            out = []
            for i, item in enumerate(node.value):
                self.places[(*path, i)] = self.place(item)
                out.append(self.value(item, (*path, i)))
            return out
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        return self.reject_tag(node, path)

    def enter(self, node: yaml.CollectionNode, path: Keys) -> None:
        """Checks the size of a list or mapping before it is read."""
        self.count += len(node.value)
        check_size((*path, 0) if node.value else path, self.count, self.source)

    def mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or (key_node.tag != f"{_PREFIX}str" and key != "<<"):
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
                case "str":
                    return text
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
