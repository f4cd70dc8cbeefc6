"""First pass over merged layers: finds the class of every node, and every name that has no place there.

Defaults are written into the tree, because interpolations may refer to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moekit.errors import MoekitError, UnknownName
from moekit.registry import Registry
from moekit.spec.dumping import plain_value, to_plain
from moekit.spec.fields import FieldInfo, Spec, default_of, fields_of, group_class, types_of
from moekit.spec.hints import is_optional
from moekit.spec.imported import FOREIGN
from moekit.spec.merging import Merged
from moekit.spec.nodes import Mistakes, Node, class_node
from moekit.spec.places import BROKEN, LEFT_OPEN, Keys, Report, found
from moekit.spec.references import References, is_reference


class Planner:
    """Plans the nodes of merged layers.

    Args:
        layers: the layers; their tree gets the defaults.
        registry: what ``use`` names.
        report: receives the mistakes.

    Attributes:
        references: resolves the interpolations of the tree.
    """

    def __init__(self, layers: Merged, registry: Registry, report: Report) -> None:
        self.layers = layers
        self.registry = registry
        self.report = report
        self.references = References(layers.tree, report)
        self.mistakes = Mistakes(report, registry)
        self.waiting: deque[Callable[[], None]] = deque()  # what refers to another part, to be planned last

    def root(self, root: type[Spec] | str) -> Any:
        """The node of the whole tree: of a class, or of a component of a kind; ``BROKEN`` if it has a mistake."""
        self._tell_unread()
        self._merge_over_copies()
        tree = self.layers.tree
        written: Any = OmegaConf.to_container(tree)
        node = self.component(root, tree, written, ()) if isinstance(root, str) else self.plan(root, tree, written, ())
        while self.waiting:
            self.waiting.popleft()()
        return node

    def _tell_unread(self) -> None:
        for path, text in self.layers.unread.items():
            shown = found(text)[1:-1] if len(text) > 60 else text
            expected = "'${path.to.option}', or '\\${' for these characters themselves"
            self.report.add(path, f"cannot read the interpolation '{shown}'", expected=expected)

    def _merge_over_copies(self) -> None:
        while self.layers.over:
            path = next(iter(self.layers.over))
            held = self.layers.over.pop(path)
            config: Any = self.layers.tree
            for parent in path[:-1]:
                config = config[parent]
            written: Any = OmegaConf.to_container(config)
            if self._copy(config, str(path[-1]), written[path[-1]], path) is not BROKEN:
                for layer in held:
                    self.layers.lay(layer)

    def plan(self, spec: type[Spec], config: DictConfig, written: dict[str, Any], path: Keys, use: str = "") -> Node:
        """The node of class ``spec`` that ``config`` holds."""
        node = Node(spec, config, written, path, use)
        for name in written:
            if name not in fields_of(spec) and not (name == "use" and use):
                self.mistakes.unknown_option(node, name)
        for name, info in fields_of(spec).items():
            value = written.get(name)
            if value == LEFT_OPEN:
                self.mistakes.left_open(node, name, info)
            elif info.kind == "option" and (
                value is not None or (name in written and is_optional(types_of(spec)[name]))
            ):
                node.options.append(name)
            elif value is None:
                self._default(node, name, info)
            else:
                make = partial(self._child, node, name, info)
                self._put(
                    node.children, config, name, value, (*path, name), make, partial(self._default, node, name, info)
                )
        return node

    def _put(
        self,
        children: dict[str, Any],
        config: DictConfig,
        name: str,
        value: Any,
        path: Keys,
        make: Callable[[Any], Any],
        absent: Callable[[], Any],
    ) -> None:
        """Puts what ``make`` makes of ``value`` among the children, or calls ``absent`` where it refers to null.

        A reference waits until all else is planned: it may be to a default.
        """
        if not is_reference(value) and not (isinstance(value, dict) and is_reference(value.get("use"))):
            children[name] = make(value)
            return

        def copy() -> None:
            copied = self._copy(config, name, value, path)
            if copied is None:
                absent()
            else:
                children[name] = copied if copied is BROKEN else make(copied)

        children[name] = BROKEN
        self.waiting.append(copy)

    def _child(self, node: Node, name: str, info: FieldInfo, value: Any) -> Any:
        path = (*node.path, name)
        if value == LEFT_OPEN:  # OmegaConf 2.3: a resolver gave it
            self.mistakes.left_open(node, name, info)
            return BROKEN
        if info.kind == "slot":
            return self._slot(info.component, node.config, name, value, path=path)
        if info.kind == "slots":
            return self._map(info.component, node.config[name], value, path)
        spec = group_class(node.spec, name)
        if isinstance(value, dict):
            return self.plan(spec, node.config[name], value, path)
        return self.mistakes.broken(
            path, f"{found(value)} where a mapping belongs", expected=f"options: {', '.join(fields_of(spec))}"
        )

    def _copy(self, config: DictConfig, key: str, written: Any, path: Keys) -> Any:
        """``written`` at ``config[key]``; of an interpolation, a copy of what it refers to, put in its place."""
        if not is_reference(written):
            return written
        value = self.references.follow(config, key, written, path)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
            self.references.count(_size(value), path)
        if value is None or isinstance(value, str | int | float | list | dict):
            config[key] = value
        return value

    def _default(self, node: Node, name: str, info: FieldInfo) -> None:
        """Gives a field that is absent its default, which interpolations may refer to."""
        default = default_of(node.spec, name)
        claim = self.registry.default(info.component) if info.claimed else None
        if claim is not None:
            value = {"use": self.registry.short_name(claim)}
            node.config[name] = dict(value)
            node.children[name] = self.component(info.component, node.config[name], value, (*node.path, name))
        elif default is MISSING:
            self.mistakes.missing(node, name, info)
        elif info.kind == "option":
            node.config[name] = plain_value(default)
        else:
            node.children[name] = default
            node.config[name] = to_plain(default, registry=self.registry) if isinstance(default, Spec) else default

    def _slot(self, kind: str, config: DictConfig, key: str, value: Any, *, path: Keys) -> Any:
        if isinstance(value, str):
            config[key] = value = {"use": value}
        return self.component(kind, config[key], value, path)

    def component(self, kind: str, config: DictConfig, value: Any, path: Keys) -> Any:
        """The node that ``value``, at ``config``, describes in a slot of ``kind``; ``BROKEN`` if it has a mistake."""
        listing = f"moekit ls {self.registry.kind(kind).plural}"
        if not isinstance(value, dict):
            what = f"{kind}: {found(value)} is not a component"
            return self.mistakes.broken(path, what, expected=f"{{use: <{kind}>, ...}}", list_with=listing)
        if not value.keys().isdisjoint(("class", *FOREIGN)):
            return class_node(self.mistakes, kind, config, value, path)
        at = (*path, "use") if "use" in value else path
        use = self._copy(config, "use", value.get("use"), at)
        if use is BROKEN or at in self.report:
            return BROKEN
        if use == LEFT_OPEN:
            what = f"the recipe leaves this {kind} open ('{LEFT_OPEN}')"
            return self.mistakes.broken(path, what, expected="use: <name>", list_with=listing)
        if use is None:
            what = f"'use' is missing: it names the {kind}"
            return self.mistakes.broken(path, what, expected="use: <name>", list_with=listing)
        if not isinstance(use, str):
            what = f"use: {found(use)} is not a name"
            return self.mistakes.broken(at, what, expected=f"the name of a {kind}", list_with=listing)
        try:
            component = self.registry.get(kind, use, home=self.report.place(at).plugin)
        except UnknownName as error:
            p = error.problem
            return self.mistakes.broken(
                at, p.what, expected=p.expected, nearest=p.nearest, list_with=p.list_with, notes=p.notes
            )
        except MoekitError as error:  # its plugin failed to load
            return self.mistakes.broken(at, str(error))
        return self.plan(component.spec_class(), config, value, path, use)

    def _map(self, kind: str, config: DictConfig, value: Any, path: Keys) -> Any:
        if not isinstance(value, dict):
            shown = _as_map(value) if isinstance(value, list) else f"name: {{use: <{kind}>, ...}}"
            what = f"{found(value)} where a named map of {self.registry.kind(kind).plural} belongs"
            return self.mistakes.broken(path, what, expected=f"{{{shown}}}")
        entries: dict[str, Any] = {}
        for name, item in value.items():
            here = (*path, name)
            if not name.replace("-", "_").isidentifier():
                expected = "a letter, then letters, digits, '_' or '-'"
                entries[name] = self.mistakes.broken(here, f"'{name}' is not a valid name", expected=expected)
            elif item is not None:
                make = partial(self._slot, kind, config, name, path=here)
                self._put(entries, config, name, item, here, make, partial(entries.pop, name))
        return entries


def _size(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, items))


def _as_map(items: list[Any]) -> str:
    """The entries of a list, written as a named map."""
    shown = []
    for item in items:
        use = item.get("use") if isinstance(item, dict) else item
        name, use = (use.rpartition("/")[2], use) if isinstance(use, str) else ("name", "...")
        shown.append(f"{name}: {{use: {use}, ...}}")
    return ", ".join(shown)
