"""Makes a spec of merged layers: plans its nodes, resolves and converts values, constructs specs from the leaves up."""

from __future__ import annotations

from typing import Any

from moekit.errors import PluginError
from moekit.registry import Registry
from moekit.spec.fields import ConflictError, FieldInfo, Spec, fields_of, types_of
from moekit.spec.imported import Imported
from moekit.spec.merging import Merged
from moekit.spec.nodes import Node
from moekit.spec.places import LEFT_OPEN, Keys, Report
from moekit.spec.planning import Planner
from moekit.spec.references import References, is_reference, register_plugins_resolvers
from moekit.spec.values import BROKEN, Values

ARGUMENT = FieldInfo("option", "")


def compose(layers: Merged, root: type[Spec] | str, registry: Registry) -> Spec:
    """The spec that merged layers describe.

    Args:
        layers: the layers; they are changed.
        root: the class of the spec, or the kind of a component whose class ``use`` says.
        registry: what ``use`` names.

    Raises:
        SpecError: with every mistake in the layers.
        PluginError: a spec class declares an option of a type that no spec can hold.
    """
    register_plugins_resolvers(registry)
    report = Report(layers.places)
    planner = Planner(layers, registry, report)
    node = planner.root(root)
    out = _Builder(planner.references, report, list(layers.unread)).build(node)
    if out is BROKEN and not report:
        planner.references.report_open()
    report.keep(planner.references.is_news)
    report.raise_if_any()
    assert isinstance(out, Spec)
    return out


class _Builder:
    def __init__(self, references: References, report: Report, unread: list[Keys]) -> None:
        self.references = references
        self.report = report
        self.unread = unread
        self.origin: dict[Keys, str] = {}
        self.values = Values(report, lambda path: self.origin.get(path, ""))

    def build(self, node: Any) -> Any:
        """The spec of ``node``; ``BROKEN`` where the node or one of its children has a mistake."""
        if not isinstance(node, Node):
            return node
        if node.spec is Imported:
            arguments = {name: self._option(node, name, ARGUMENT, Any) for name in node.options}
            broken = any(value is BROKEN for value in arguments.values())
            return BROKEN if broken else Imported(path=node.use, arguments=arguments)
        given: dict[str, Any] = {}
        for name, info in fields_of(node.spec).items():
            child = node.children.get(name)
            if name in node.options:
                given[name] = self._option(node, name, info, types_of(node.spec)[name])
            elif info.kind == "slots" and isinstance(child, dict):
                entries = {key: self.build(item) for key, item in child.items()}
                given[name] = BROKEN if any(item is BROKEN for item in entries.values()) else entries
            elif name in node.children:
                given[name] = self.build(child)
        if not node.sound or any(value is BROKEN for value in given.values()):
            return BROKEN
        try:
            return node.spec(**given)
        except ConflictError as error:
            sentences = list(error.sentences)
        except ValueError as error:
            sentences = [str(error)]
        except Exception as error:  # a mistake in a plugin
            sentences = [f"{node} cannot be checked: {type(error).__name__}: {error}"]
        for sentence in sentences:
            self.report.add(node.path, sentence)
        return BROKEN

    def _option(self, node: Node, name: str, info: FieldInfo, hint: Any) -> Any:
        path, written = (*node.path, name), node.written[name]
        if written == LEFT_OPEN:  # elsewhere planning finds it
            self.report.add(path, f"{name}: the recipe leaves this open ('{LEFT_OPEN}')", expected="a plain value")
            return BROKEN
        value = self.references.value(node.config, name, written, path)
        if value is BROKEN or any(here[: len(path)] == path for here in self.unread):
            return BROKEN
        if is_reference(written):
            self.origin[path] = f" (from {written})"
        try:
            return self.values.read(value, hint, info, path)
        except PluginError as error:
            raise PluginError(f"{node}, option '{name}': {error}") from error
