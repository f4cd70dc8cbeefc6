"""The nodes of a spec whose class is known, and the mistakes that planning finds in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from moekit.errors import nearest
from moekit.registry import MAX_LISTED, Registry
from moekit.spec.fields import FieldInfo, Spec, fields_of, group_class, types_of
from moekit.spec.hints import describe
from moekit.spec.imported import FOREIGN, Imported, is_import_path
from moekit.spec.places import LEFT_OPEN, Keys, Place, Report, found, one_of, show
from moekit.spec.recipe import Recipe


@dataclass(eq=False, repr=False)
class Node:
    """A component or a group of known class, before its values are read.

    Attributes:
        config: the node of the tree.
        written: the same as plain data, not resolved.
        use: the component's name as written; empty for a group.
        children: the node in each slot, map and group; ``BROKEN`` for one with a mistake.
        options: names of the options that are given.
        sound: whether the node itself has no mistake.
    """

    spec: type[Spec]
    config: DictConfig
    written: dict[str, Any]
    path: Keys
    use: str = ""
    children: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    sound: bool = True

    def __str__(self) -> str:
        if self.use:
            return f"{self.spec.kind} '{self.use}'"
        return f"'{show(self.path)}'" if self.path else "a recipe" if self.spec is Recipe else self.spec.__name__


class Mistakes:
    """Reports the mistakes in nodes."""

    def __init__(self, report: Report, registry: Registry) -> None:
        self.registry = registry
        self.report = report
        self.broken = report.add

    def unknown_option(self, node: Node, name: str) -> None:
        """The spec class has no such field."""
        names = list(fields_of(node.spec))
        if name in node.spec.refused:
            what = f"'{show((*node.path, name))}' is not for a spec: {node.spec.refused[name]}"
            return self._unsound(node, name, what)
        groups = [group for group, info in fields_of(node.spec).items() if info.kind == "group"]
        inside = [f"{group}.{name}" for group in groups if name in fields_of(group_class(node.spec, group))]
        near = inside[0] if inside else nearest(str(name), names)
        many = node.use or (near and len(names) > MAX_LISTED)
        self._unsound(
            node,
            name,
            f"{node} has no option '{name}'",
            "" if many and names else one_of(names) if names else "no option at all",
            f"moekit show {node.use}" if node.use and names else "",
            nearest=near,
        )

    def missing(self, node: Node, name: str, info: FieldInfo) -> None:
        """A field without a default is not given."""
        here = (*node.path, name)
        value, listing = self._expected(node, name, info)
        if info.kind != "slot":
            value += f" ({info.help})" if info.help else ""
            listing = f"moekit show {node.use}" if node.use else ""
        written = here if here in self.report.places else (*node.path, "use") if node.use else node.path
        place = self.report.place(written)
        self._unsound(node, name, f"{node} needs '{name}'", f"{name}: {value}", listing, place=place)

    def left_open(self, node: Node, name: str, info: FieldInfo) -> None:
        """A field is ``???``."""
        value, listing = self._expected(node, name, info)
        what = f"{name}: the recipe leaves this open ('{LEFT_OPEN}')"
        if info.kind == "slot":
            what, value = f"the recipe leaves this {info.component} open ('{LEFT_OPEN}')", "use: <name>"
        self._unsound(node, name, what, value, listing)

    def _expected(self, node: Node, name: str, info: FieldInfo) -> tuple[str, str]:
        """What a field takes, and the command that lists it."""
        if info.kind == "slot":
            return f"{{use: <{info.component}>, ...}}", f"moekit ls {self.registry.kind(info.component).plural}"
        if info.kind != "option":
            return "a mapping", ""
        return f"{describe(types_of(node.spec)[name])} {'' if info.choices else info.range_text()}".rstrip(), ""

    def _unsound(
        self,
        node: Node,
        name: str,
        what: str,
        expected: str = "",
        list_with: str = "",
        nearest: str = "",
        place: Place | None = None,
    ) -> None:
        node.sound = False
        path = (*node.path, name)
        if path not in self.report:  # its interpolation cannot be read
            self.report.add(path, what, expected=expected, nearest=nearest, list_with=list_with, place=place)


def class_node(mistakes: Mistakes, kind: str, config: DictConfig, value: dict[str, Any], path: Keys) -> Any:
    """The node of a class named by its import path, in a slot of ``kind``; ``BROKEN`` if it has a mistake.

    Its arguments are checked when the class is imported.
    """
    wrong = next((name for name in (*FOREIGN, "use") if name in value), "")
    of = mistakes.registry.kind(kind)
    if not of.imports:
        here = (*path, wrong if wrong in FOREIGN else "class")
        what = f"a {kind} cannot be a class by its import path"
        return mistakes.broken(here, what, expected="use: <name>", list_with=f"moekit ls {of.plural}")
    if wrong:
        what = "'use' and 'class' exclude each other" if wrong == "use" else f"'{wrong}' is called 'class' here"
        expected = "class: package.module.Name, and its arguments next to it"
        return mistakes.broken((*path, wrong), what, expected=expected)
    if not is_import_path(value["class"]):
        what = f"class: {found(value['class'])} is not an import path"
        return mistakes.broken((*path, "class"), what, expected="package.module.Name")
    arguments = [name for name in value if name != "class"]
    return Node(Imported, config, value, path, value["class"], options=arguments)
