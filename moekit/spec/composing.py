"""Makes a spec of a merged tree: resolves and converts its values, then constructs specs from the leaves up."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

from moekit.errors import PluginError
from moekit.spec.dumping import plain_value, to_plain
from moekit.spec.fields import ConflictError, FieldInfo, Spec, default_of, fields_of, types_of
from moekit.spec.imported import Imported
from moekit.spec.interpolation import Resolver, interpolated
from moekit.spec.places import Keys, Report, Tree
from moekit.spec.planning import LEFT_OPEN, Node, Planner
from moekit.spec.recipe import Recipe
from moekit.spec.values import BROKEN, Values


def compose(tree: Tree, kind: str) -> Spec:
    """The spec that ``tree`` describes: of a component of ``kind``, or of a whole recipe for ``recipe``.

    Raises:
        SpecError: with every mistake in the tree.
        PluginError: a spec class declares an option of a type that no spec can hold.
    """
    report = Report(tree.places)
    planner = Planner(report)
    root = planner.plan(Recipe, tree.data, ()) if kind == "recipe" else planner.component(kind, tree.data, ())
    out: Any = BROKEN
    if isinstance(root, Node):
        out = _Builder(root, report, planner.unread).build(root)
    report.raise_if_any()
    assert isinstance(out, Spec)
    return out


class _Builder:
    def __init__(self, root: Node, report: Report, unread: list[Keys]) -> None:
        self.report = report
        self.resolver = Resolver(_plain(root), report, unread)
        self.origin: dict[Keys, str] = {}
        self.values = Values(report, lambda path: self.origin.get(path, ""))

    def build(self, node: Any) -> Any:
        """The spec of ``node``; ``BROKEN`` where the node or one of its children has a mistake."""
        if not isinstance(node, Node):
            return node
        if node.spec is Imported:
            return self._imported(node)
        given: dict[str, Any] = {}
        for name, info in fields_of(node.spec).items():
            if info.kind == "option":
                if name in node.given:
                    given[name] = self._option(node, name, info)
            elif name in node.children:
                child = node.children[name]
                if info.kind == "slots" and child is not BROKEN:
                    entries = {key: self.build(item) for key, item in child.items()}
                    given[name] = BROKEN if any(item is BROKEN for item in entries.values()) else entries
                else:
                    given[name] = self.build(child)
        if not node.sound or any(value is BROKEN for value in given.values()):
            return BROKEN
        try:
            return node.spec(**given)
        except ValueError as error:
            for sentence in error.sentences if isinstance(error, ConflictError) else (str(error),):
                self.report.add(node.path, sentence)
            return BROKEN

    def _imported(self, node: Node) -> Any:
        arguments: dict[str, Any] = {}
        for name, raw in node.given.items():
            path = (*node.path, name)
            value = self.resolver.resolve(raw, path)
            if value == LEFT_OPEN:
                self.report.add(path, f"{name}: the recipe leaves this open ('{LEFT_OPEN}')", expected="a plain value")
                value = BROKEN
            arguments[name] = value if value is BROKEN else self.values.convert(value, Any, path)
        broken = any(value is BROKEN for value in arguments.values())
        return BROKEN if broken else Imported(path=node.use, arguments=arguments)

    def _option(self, node: Node, name: str, info: FieldInfo) -> Any:
        path = (*node.path, name)
        raw = node.given[name]
        value = self.resolver.resolve(raw, path)
        if value is BROKEN:
            return BROKEN
        if isinstance(raw, str) and interpolated(raw):
            self.origin[path] = f" (from {raw})"
        try:
            return self.values.read(value, types_of(node.spec)[name], info, path)
        except PluginError as error:
            raise PluginError(f"{node}, option '{name}': {error}") from error


def _plain(node: Node) -> dict[str, Any]:
    """The node as plain data with its defaults, which interpolations may refer to."""
    if node.spec is Imported:
        return {"class": node.use, **node.given}
    out: dict[str, Any] = {"use": node.use} if node.use else {}
    for name, info in fields_of(node.spec).items():
        if info.kind == "option":
            if name in node.given:
                out[name] = node.given[name]
            elif (value := default_of(node.spec, name)) is not MISSING:
                out[name] = plain_value(value)
            continue
        child = node.children.get(name)
        if isinstance(child, Node):
            out[name] = _plain(child)
        elif isinstance(child, Spec):
            out[name] = to_plain(child)
        elif isinstance(child, dict):
            out[name] = {key: _plain(item) for key, item in child.items() if isinstance(item, Node)}
    return out
