"""First pass over a merged tree: finds the spec class of every node, and every name that has no place there."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Final

from moekit.errors import MoekitError, UnknownName, nearest
from moekit.registry import current
from moekit.spec.fields import FieldInfo, Spec, default_of, fields_of, group_class, types_of
from moekit.spec.hints import describe
from moekit.spec.imported import FOREIGN, Imported, is_import_path
from moekit.spec.interpolation import interpolated
from moekit.spec.places import Keys, Report, found, one_of, show
from moekit.spec.values import BROKEN

LEFT_OPEN: Final = "???"
"""OmegaConf's mark for a value that a file leaves to those that extend it."""


@dataclass
class Node:
    """A component or a group of known class, before its values are read.

    Attributes:
        use: the component's name as written; empty for a group.
        given: the options as written.
        children: the nodes in each slot, map and group; ``BROKEN`` for one with a mistake.
        sound: whether the node itself has no mistake.
    """

    spec: type[Spec]
    path: Keys
    use: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Any] = field(default_factory=dict)
    sound: bool = True

    def __str__(self) -> str:
        if self.use:
            return f"{self.spec.kind} '{self.use}'"
        return f"'{show(self.path)}'" if self.path else "a recipe"


class Planner:
    """Plans the nodes of one tree.

    Attributes:
        unread: paths whose mistakes are already in the report; a reference to one of them adds no other.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.unread: list[Keys] = []

    def plan(self, spec: type[Spec], given: Mapping[str, Any], path: Keys, use: str = "") -> Node:
        """The node of class ``spec`` with the fields ``given``."""
        node = Node(spec, path, use)
        known = fields_of(spec)
        for name, value in given.items():
            if name == "use" and use:
                continue
            if name not in known:
                self._unknown_option(node, name)
            elif value is not None or _takes_null(spec, name):
                node.given[name] = value
        for name, info in known.items():
            here = (*path, name)
            value = node.given.get(name)
            if info.kind == "option":
                if name not in node.given and default_of(spec, name) is MISSING:
                    self._missing(node, name, info)
                elif value == LEFT_OPEN:
                    self._left_open(node, name)
                continue
            if value is None:
                default = default_of(spec, name)
                if default is MISSING:
                    self._missing(node, name, info)
                    node.children[name] = BROKEN
                else:
                    node.children[name] = default
            elif info.kind == "slot":
                node.children[name] = self.component(info.component, value, here)
            elif info.kind == "slots":
                node.children[name] = self._map(info.component, value, here)
            else:
                node.children[name] = self._group(group_class(spec, name), value, here)
        return node

    def component(self, kind: str, value: Any, path: Keys) -> Any:
        """The node that ``value`` describes in a slot of ``kind``; ``BROKEN`` if it has a mistake."""
        listing = f"moekit ls {current().kind(kind).plural}"
        if isinstance(value, str):
            value = {"use": value}
        if not isinstance(value, dict):
            expected = f"{{use: <{kind}>, ...}}"
            return self._broken(
                path, f"{kind}: {found(value)} is not a component", expected=expected, list_with=listing
            )
        if not value.keys().isdisjoint(("class", *FOREIGN)):
            return self._imported(kind, value, path)
        use = value.get("use")
        if use == LEFT_OPEN:
            what = f"the recipe leaves this {kind} open ('{LEFT_OPEN}')"
            return self._broken(path, what, expected="use: <name>", list_with=listing)
        at = (*path, "use") if "use" in value else path
        if use is None:
            what = f"'use' is missing: it names the {kind}"
            return self._broken(path, what, expected="use: <name>", list_with=listing)
        if not isinstance(use, str):
            return self._broken(
                at, f"use: {found(use)} is not a name", expected=f"the name of a {kind}", list_with=listing
            )
        if interpolated(use):
            return self._broken(
                at, f"use: '{use}' is an interpolation", expected=f"the name of a {kind}", list_with=listing
            )
        try:
            component = current().get(kind, use)
        except UnknownName as error:
            p = error.problem
            return self._broken(
                at, p.what, expected=p.expected, nearest=p.nearest, list_with=p.list_with, notes=p.notes
            )
        except MoekitError as error:  # its plugin failed to load
            return self._broken(at, str(error))
        return self.plan(component.spec_class(), value, path, use)

    def _imported(self, kind: str, value: dict[str, Any], path: Keys) -> Any:
        """The node of a class named by its import path; its arguments are checked when it is imported."""
        listing = f"moekit ls {current().kind(kind).plural}"
        wrong = next((name for name in (*FOREIGN, "use") if name in value), "")
        if not current().kind(kind).imports:
            here = wrong if wrong in FOREIGN else "class"
            return self._broken(
                (*path, here),
                f"a {kind} cannot be a class by its import path",
                expected="use: <name>",
                list_with=listing,
            )
        if wrong:
            expected = "class: package.module.Name, and its arguments next to it"
            what = "'use' and 'class' exclude each other" if wrong == "use" else f"'{wrong}' is called 'class' here"
            return self._broken((*path, wrong), what, expected=expected)
        if not is_import_path(value["class"]):
            what = f"class: {found(value['class'])} is not an import path"
            return self._broken((*path, "class"), what, expected="package.module.Name")
        return Node(
            Imported, path, given={name: item for name, item in value.items() if name != "class"}, use=value["class"]
        )

    def _map(self, kind: str, value: Any, path: Keys) -> Any:
        if not isinstance(value, dict):
            shown = _as_map(value) if isinstance(value, list) else f"name: {{use: <{kind}>, ...}}"
            return self._broken(
                path,
                f"{found(value)} where a named map of {current().kind(kind).plural} belongs",
                expected=f"{{{shown}}}",
            )
        entries: dict[str, Any] = {}
        for name, item in value.items():
            here = (*path, name)
            if not name.replace("-", "_").isidentifier():
                entries[name] = self._broken(
                    here, f"'{name}' is not a valid name", expected="a letter, then letters, digits, '_' or '-'"
                )
            elif item is not None:
                entries[name] = self.component(kind, item, here)
        return entries

    def _group(self, spec: type[Spec], value: Any, path: Keys) -> Any:
        if not isinstance(value, dict):
            return self._broken(
                path, f"{found(value)} where a mapping belongs", expected=f"options: {', '.join(fields_of(spec))}"
            )
        return self.plan(spec, value, path)

    def _broken(self, path: Keys, what: str, **more: Any) -> Any:
        self.unread.append(path[:-1] if path and path[-1] == "use" else path)
        self.report.add(path, what, **more)
        return BROKEN

    def _unknown_option(self, node: Node, name: str) -> None:
        node.sound = False
        names = list(fields_of(node.spec))
        here = (*node.path, name)
        self.unread.append(here)
        if name in node.spec.refused:
            self.report.add(here, f"'{show(here)}' is not for a spec: {node.spec.refused[name]}")
            return
        inside = next((f"{group}.{name}" for group in names if name in _group_options(node.spec, group)), "")
        self.report.add(
            here,
            f"{node} has no option '{name}'",
            expected="" if node.use and names else one_of(names) if names else "no option at all",
            nearest=inside or nearest(name, names),
            list_with=f"moekit show {node.use}" if node.use and names else "",
        )

    def _missing(self, node: Node, name: str, info: FieldInfo) -> None:
        node.sound = False
        here = (*node.path, name)
        self.unread.append(here)
        if info.kind == "slot":
            expected = f"{name}: {{use: <{info.component}>, ...}}"
            listing = f"moekit ls {current().kind(info.component).plural}"
        else:
            kind = describe(types_of(node.spec)[name]) if info.kind == "option" else "a mapping"
            limits = "" if info.choices else info.range_text()
            expected = f"{name}: {kind} {limits}".rstrip() + (f" ({info.help})" if info.help else "")
            listing = f"moekit show {node.use}" if node.use else ""
        written = here if here in self.report.places else (*node.path, "use") if node.use else node.path
        place = self.report.place(written)
        self.report.add(here, f"{node} needs '{name}'", expected=expected, list_with=listing, place=place)

    def _left_open(self, node: Node, name: str) -> None:
        node.sound = False
        here = (*node.path, name)
        self.unread.append(here)
        del node.given[name]
        info = fields_of(node.spec)[name]
        kind = describe(types_of(node.spec)[name])
        expected = f"{kind} {'' if info.choices else info.range_text()}".rstrip()
        self.report.add(here, f"{name}: the recipe leaves this open ('{LEFT_OPEN}')", expected=expected)


def _as_map(items: list[Any]) -> str:
    """The entries of a list, written as a named map."""
    shown = []
    for item in items:
        use = item.get("use") if isinstance(item, dict) else item
        name, use = (use.rpartition("/")[2], use) if isinstance(use, str) else ("name", "...")
        shown.append(f"{name}: {{use: {use}, ...}}")
    return ", ".join(shown)


def _group_options(spec: type[Spec], name: str) -> Collection[str]:
    """The names of the options of a group; empty for another field."""
    return fields_of(group_class(spec, name)) if fields_of(spec)[name].kind == "group" else ()


def _takes_null(spec: type[Spec], name: str) -> bool:
    """Whether null is a value of this option; elsewhere null means *absent*."""
    return fields_of(spec)[name].kind == "option" and type(None) in typing.get_args(types_of(spec)[name])
