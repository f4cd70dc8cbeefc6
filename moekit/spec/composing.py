"""Makes a spec of merged layers: plans its nodes from the root down, then constructs specs from the leaves up.

Planning finds the class of every node and every name that has no place there, and writes the defaults into the tree.
Then interpolations, which may refer to defaults, are resolved, and values are converted.
"""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from moekit.component import Component
from moekit.errors import MoekitError, PluginError, UnknownName, nearest
from moekit.registry import Registry
from moekit.spec.dumping import plain_value, to_plain
from moekit.spec.fields import ConflictError, FieldInfo, Spec, default_of, fields_of, group_class, types_of
from moekit.spec.merging import Merged
from moekit.spec.places import LEFT_OPEN, Keys, Report, found, one_of, show
from moekit.spec.recipe import Recipe, plural
from moekit.spec.references import References, is_reference
from moekit.spec.trainer_options import TRAINER_OPTIONS, check_trainer
from moekit.spec.values import BROKEN, Values, describe


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
    return _Composer(layers, registry).spec(root)


@dataclass
class _Node:
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


class _Composer:
    def __init__(self, layers: Merged, registry: Registry) -> None:
        self.layers = layers
        self.registry = registry
        self.report = Report(layers.places)
        self.references = References(layers.tree, self.report)
        self.closed: set[Keys] = set()  # paths that are open because of a mistake, which is in the report
        self.waiting: deque[Callable[[], None]] = deque()  # what refers to another part, to be planned last
        self.origin: dict[Keys, str] = {}
        self.values = Values(self.report, lambda path: self.origin.get(path, ""))

    def spec(self, root: type[Spec] | str) -> Spec:
        self._tell_unread()
        self._merge_over_copies()
        tree = self.layers.tree
        written: Any = OmegaConf.to_container(tree)
        node = self.component(root, tree, written, ()) if isinstance(root, str) else self.plan(root, tree, written, ())
        while self.waiting:
            self.waiting.popleft()()
        out = self.build(node)
        if out is BROKEN and not self.report:
            self.references.report_open()
        self.report.keep(self.references.is_news)
        self.report.raise_if_any()
        assert isinstance(out, Spec)
        return out

    def _tell_unread(self) -> None:
        for path, text in self.layers.unread.items():
            shown = found(text)[1:-1] if len(text) > 60 else text
            expected = "'${path.to.option}', or '\\${' for these characters themselves"
            self.report.add(path, f"cannot read the interpolation '{shown}'", expected=expected)
            self._close(path)

    def _merge_over_copies(self) -> None:
        while self.layers.over:
            path = next(iter(self.layers.over))
            held = self.layers.over.pop(path)
            config: Any = self.layers.tree
            for parent in path[:-1]:
                config = config[parent]
            written: Any = OmegaConf.to_container(config)
            if self._copy(config, str(path[-1]), written[path[-1]], path) is BROKEN:
                self._close(path)
            else:
                for layer in held:
                    self.layers.lay(layer)

    # ---- planning ---------------------------------------------------------------------------------------------------

    def plan(self, spec: type[Spec], config: DictConfig, written: dict[str, Any], path: Keys, use: str = "") -> _Node:
        """The node of class ``spec`` that ``config`` holds."""
        node = _Node(spec, config, written, path, use)
        for name in written:
            if name not in fields_of(spec) and not (name == "use" and use):
                self._unknown_option(node, name)
        for name, info in fields_of(spec).items():
            value = written.get(name)
            if value == LEFT_OPEN:
                self._left_open(node, name, info)
            elif info.kind == "option" and (value is not None or (name in written and _takes_null(spec, name))):
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

    def _child(self, node: _Node, name: str, info: FieldInfo, value: Any) -> Any:
        path = (*node.path, name)
        if info.kind == "slot":
            return self._slot(info.component, node.config, name, value, path=path)
        if info.kind == "slots":
            return self._map(info.component, node.config[name], value, path)
        spec = group_class(node.spec, name)
        if isinstance(value, dict):
            return self.plan(spec, node.config[name], value, path)
        return self._broken(
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

    def _default(self, node: _Node, name: str, info: FieldInfo) -> None:
        """Gives a field that is absent its default, which interpolations may refer to."""
        default = default_of(node.spec, name)
        if default is MISSING:
            self._missing(node, name, info)
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
        listing = f"moekit ls {plural(kind)}"
        if not isinstance(value, dict):
            what = f"{kind}: {found(value)} is not a component"
            return self._broken(path, what, expected=f"{{use: <{kind}>, ...}}", list_with=listing)
        at = (*path, "use") if "use" in value else path
        use = self._copy(config, "use", value.get("use"), at)
        if use is BROKEN or not self.closed.isdisjoint((path, at)):
            return self._close(path)
        if use == LEFT_OPEN:
            what = f"the recipe leaves this {kind} open ('{LEFT_OPEN}')"
            return self._broken(path, what, expected="use: <name>", list_with=listing)
        if use is None:
            what = f"'use' is missing: it names the {kind}"
            return self._broken(path, what, expected="use: <name>", list_with=listing)
        if not isinstance(use, str):
            what = f"use: {found(use)} is not a name"
            return self._broken(at, what, expected=f"the name of a {kind}", list_with=listing)
        try:
            component: Component = self.registry.get(kind, use)
        except UnknownName as error:
            p = error.problem
            return self._broken(
                at, p.what, expected=p.expected, nearest=p.nearest, list_with=p.list_with, notes=p.notes
            )
        except MoekitError as error:  # its plugin failed to load
            return self._broken(at, str(error))
        return self.plan(component.spec, config, value, path, use)

    def _map(self, kind: str, config: DictConfig, value: Any, path: Keys) -> Any:
        if not isinstance(value, dict):
            shown = _as_map(value) if isinstance(value, list) else f"name: {{use: <{kind}>, ...}}"
            what = f"{found(value)} where a named map of {plural(kind)} belongs"
            return self._broken(path, what, expected=f"{{{shown}}}")
        entries: dict[str, Any] = {}
        for name, item in value.items():
            here = (*path, name)
            if not name.replace("-", "_").isidentifier():
                expected = "a letter, then letters, digits, '_' or '-'"
                entries[name] = self._broken(here, f"'{name}' is not a valid name", expected=expected)
            elif item is not None:
                make = partial(self._slot, kind, config, name, path=here)
                self._put(entries, config, name, item, here, make, partial(entries.pop, name))
        return entries

    # ---- mistakes ---------------------------------------------------------------------------------------------------

    def _broken(self, path: Keys, what: str, **more: Any) -> Any:
        self.report.add(path, what, **more)
        return self._close(path[:-1] if path[-1:] == ("use",) else path)

    def _close(self, path: Keys) -> Any:
        """Marks ``path``, which has a mistake in the report, as open: a reference to it then adds no other."""
        self.closed.add(path)
        node: Any = self.layers.tree
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

    def _unknown_option(self, node: _Node, name: str) -> None:
        names = list(fields_of(node.spec))
        self._unsound(
            node,
            name,
            f"{node} has no option '{name}'",
            expected="" if node.use and names else one_of(names) if names else "no option at all",
            nearest=f"trainer.{name}" if not node.path and name in TRAINER_OPTIONS else nearest(name, names),
            list_with=f"moekit show {node.use}" if node.use and names else "",
        )

    def _missing(self, node: _Node, name: str, info: FieldInfo) -> None:
        here = (*node.path, name)
        if info.kind == "slot":
            expected = f"{name}: {{use: <{info.component}>, ...}}"
            listing = f"moekit ls {plural(info.component)}"
        else:
            kind = describe(types_of(node.spec)[name]) if info.kind == "option" else "a mapping"
            limits = "" if info.choices else info.range_text()
            expected = f"{name}: {kind} {limits}".rstrip() + (f" ({info.help})" if info.help else "")
            listing = f"moekit show {node.use}" if node.use else ""
        written = here if here in self.report.places else (*node.path, "use") if node.use else node.path
        place = self.report.place(written)
        self._unsound(node, name, f"{node} needs '{name}'", expected=expected, list_with=listing, place=place)

    def _left_open(self, node: _Node, name: str, info: FieldInfo) -> None:
        here = (*node.path, name)
        if here in self.closed:
            node.sound = False
            return
        if info.kind == "slot":
            what = f"the recipe leaves this {info.component} open ('{LEFT_OPEN}')"
            expected, listing = "use: <name>", f"moekit ls {plural(info.component)}"
        else:
            what, listing = f"{name}: the recipe leaves this open ('{LEFT_OPEN}')", ""
            kind = describe(types_of(node.spec)[name]) if info.kind == "option" else "a mapping"
            expected = f"{kind} {'' if info.choices else info.range_text()}".rstrip()
        self._unsound(node, name, what, expected=expected, list_with=listing)

    def _unsound(self, node: _Node, name: str, what: str, **more: Any) -> None:
        node.sound = False
        self._broken((*node.path, name), what, **more)

    # ---- building ---------------------------------------------------------------------------------------------------

    def build(self, node: Any) -> Any:
        """The spec of ``node``; ``BROKEN`` where the node or one of its children has a mistake."""
        if not isinstance(node, _Node):
            return node
        given: dict[str, Any] = {}
        for name, info in fields_of(node.spec).items():
            child = node.children.get(name)
            if name in node.options:
                given[name] = self._option(node, name, info)
            elif info.kind == "slots" and isinstance(child, dict):
                entries = {key: self.build(item) for key, item in child.items()}
                given[name] = BROKEN if any(item is BROKEN for item in entries.values()) else entries
            elif name in node.children:
                given[name] = self.build(child)
        if node.spec is Recipe and given.get("trainer", BROKEN) is not BROKEN:
            check_trainer(given["trainer"], self.report)
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

    def _option(self, node: _Node, name: str, info: FieldInfo) -> Any:
        path, written = (*node.path, name), node.written[name]
        value = self.references.value(node.config, name, written, path)
        if value is BROKEN or any(here[: len(path)] == path for here in self.layers.unread):
            return BROKEN
        if is_reference(written):
            self.origin[path] = f" (from {written})"
        try:
            return self.values.read(value, types_of(node.spec)[name], info, path)
        except PluginError as error:
            raise PluginError(f"{node}, option '{name}': {error}") from error


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


def _takes_null(spec: type[Spec], name: str) -> bool:
    """Whether null is a value of this option; elsewhere null means *absent*."""
    return fields_of(spec)[name].kind == "option" and type(None) in typing.get_args(types_of(spec)[name])
