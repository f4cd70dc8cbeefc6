"""The nodes of a spec whose class is known, and the mistakes that planning finds in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moekit.errors import nearest
from moekit.registry import MAX_LISTED, Registry
from moekit.spec.fields import FieldInfo, Spec, fields_of, group_class, types_of
from moekit.spec.hints import describe
from moekit.spec.imported import FOREIGN, Imported, is_import_path
from moekit.spec.places import LEFT_OPEN, Keys, Place, Report, found, one_of, show
from moekit.spec.recipe import Recipe
from moekit.spec.values import BROKEN


@dataclass
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
    """Reports mistakes, and marks their paths in the tree.

    Attributes:
        closed: paths that are open because of a mistake that is in the report.
    """

    def __init__(self, tree: DictConfig, report: Report, registry: Registry) -> None:
        self.tree = tree
        self.registry = registry
        self.report = report
        self.closed: set[Keys] = set()

    def broken(
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
        """Adds a mistake to the report, and gives ``BROKEN``."""
        self.report.add(path, what, expected=expected, nearest=nearest, list_with=list_with, notes=notes, place=place)
        return self.close(path[:-1] if path[-1:] == ("use",) else path)

    def close(self, path: Keys) -> Any:
        """Marks ``path``, which has a mistake in the report, as open: a reference to it then adds no other."""
        self.closed.add(path)
        node: Any = self.tree
        for key in path[:-1]:
            if (
                not OmegaConf.is_config(node)
                or OmegaConf.is_interpolation(node, key)
                or OmegaConf.is_missing(node, key)
            ):
                return BROKEN
            node = node[key]
        if path and OmegaConf.is_config(node):
            node[path[-1]] = LEFT_OPEN
        return BROKEN

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
            expected="" if many and names else one_of(names) if names else "no option at all",
            nearest=near,
            list_with=f"moekit show {node.use}" if node.use and names else "",
        )

    def missing(self, node: Node, name: str, info: FieldInfo) -> None:
        """A field without a default is not given."""
        here = (*node.path, name)
        if info.kind == "slot":
            expected = f"{name}: {{use: <{info.component}>, ...}}"
            listing = f"moekit ls {self.registry.kind(info.component).plural}"
        else:
            kind = describe(types_of(node.spec)[name]) if info.kind == "option" else "a mapping"
            limits = "" if info.choices else info.range_text()
            expected = f"{name}: {kind} {limits}".rstrip() + (f" ({info.help})" if info.help else "")
            listing = f"moekit show {node.use}" if node.use else ""
        written = here if here in self.report.places else (*node.path, "use") if node.use else node.path
        place = self.report.place(written)
        self._unsound(node, name, f"{node} needs '{name}'", expected=expected, list_with=listing, place=place)

    def left_open(self, node: Node, name: str, info: FieldInfo) -> None:
        """A field is ``???``."""
        here = (*node.path, name)
        if here in self.closed:
            node.sound = False
            return
        if info.kind == "slot":
            what = f"the recipe leaves this {info.component} open ('{LEFT_OPEN}')"
            expected, listing = "use: <name>", f"moekit ls {self.registry.kind(info.component).plural}"
        else:
            what, listing = f"{name}: the recipe leaves this open ('{LEFT_OPEN}')", ""
            kind = describe(types_of(node.spec)[name]) if info.kind == "option" else "a mapping"
            expected = f"{kind} {'' if info.choices else info.range_text()}".rstrip()
        self._unsound(node, name, what, expected=expected, list_with=listing)

    def _unsound(self, node: Node, name: str, what: str, **more: Any) -> None:
        node.sound = False
        self.broken((*node.path, name), what, **more)


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
