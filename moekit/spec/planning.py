"""First pass over merged layers: finds the class of every node, and every name that has no place there.

Defaults are written into the data, because interpolations may refer to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from moekit.component import Kind
from moekit.errors import MoekitError, UnknownName, nearest
from moekit.registry import MAX_LISTED, Registry
from moekit.spec.dumping import plain_value
from moekit.spec.fields import FieldInfo, Spec, cached, describe, fields_of, is_optional, one_of
from moekit.spec.kinds import FOREIGN, Imported, is_import_path
from moekit.spec.layers import Merged
from moekit.spec.recipe import Recipe
from moekit.spec.references import References, is_readable
from moekit.spec.tree import BROKEN, LEFT_OPEN, Keys, Place, Report, found, is_reference, show

DATA: Keys = ("data",)
TOKENIZER = "tokenizer"


@dataclass(eq=False, repr=False)
class Node:
    """A component or a group of known class, before its values are read.

    Attributes:
        written: its part of the data; defaults are added to it.
        use: the component's name as written; empty for a group.
        children: the node in each slot, map and group; ``BROKEN`` for one with a mistake.
        options: names of the options that are given.
        sound: whether the node itself has no mistake.
    """

    spec: type[Spec]
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


class Planner:
    """Plans the nodes of merged layers.

    Args:
        layers: the layers; their data gets the defaults.
        registry: what ``use`` names.
        report: receives the mistakes.

    Attributes:
        references: resolves the interpolations in the data.
        unread: paths of the texts whose interpolation cannot be parsed.
    """

    def __init__(self, layers: Merged, registry: Registry, report: Report) -> None:
        self.unread: list[Keys] = []
        self._layers = layers
        self._registry = registry
        self._report = report
        self._waiting: deque[Callable[[], None]] = deque()  # what refers to another part, to be planned last
        self.references = References(layers.data, report)

    def root(self, root: type[Spec] | str) -> Any:
        """The node of all data: of a class, or of a component of a kind; ``BROKEN`` if it has a mistake."""
        data = self._layers.data
        self._take_unread()
        self._merge_over_copies()
        node = self._component(root, {}, (), data) if isinstance(root, str) else self._plan(root, data, ())
        self.references.renew()  # with the defaults
        while self._waiting:
            self._waiting.popleft()()
        return node

    def value(self, written: Any, path: Keys) -> Any:
        """What is written at ``path``, every interpolation in it resolved; ``BROKEN`` if one cannot be."""
        if not _refers(written):
            return written
        return self.references.value(self.references.config_at(path[:-1]), path[-1], written, path)

    def _take_unread(self) -> None:
        """Reports the texts that OmegaConf cannot parse. It rejects all data with one of them: they become ``???``."""
        waiting: list[tuple[Keys, Any]] = [((), self._layers.data)]
        for path, items in waiting:  # which grows
            for key, value in items.items() if isinstance(items, dict) else enumerate(items):
                if isinstance(value, dict | list):
                    waiting.append(((*path, key), value))
                elif isinstance(value, str) and "${" in value and not is_readable(value):
                    items[key] = LEFT_OPEN
                    self.unread.append((*path, key))
                    shown = found(value)[1:-1] if len(value) > 60 else value
                    expected = "'${path.to.option}', or '\\${' for these characters themselves"
                    what = f"cannot read the interpolation '{shown}'"
                    self._report.add((*path, key), what, expected=expected)

    def _merge_over_copies(self) -> None:
        while self._layers.over:
            path = next(iter(self._layers.over))
            held = self._layers.over.pop(path)
            holder: Any = self._layers.data
            for key in path[:-1]:
                holder = holder[key]
            if self._copy(holder, path) is not BROKEN:
                for layer in held:
                    self._layers.lay(layer)
                self._take_unread()
                self.references.renew()

    def _plan(self, spec: type[Spec], written: dict[str, Any], path: Keys, use: str = "") -> Node:
        """The node of class ``spec`` that is written at ``path``."""
        node = Node(spec, written, path, use)
        known = fields_of(spec)
        if path == DATA and TOKENIZER in known:
            self._keep_tokenizer(written)
        for name in [name for name in written if name not in known and not (use and name == "use")]:
            self._unknown_option(node, name)
        for name, info in known.items():
            value = written.get(name)
            if value == LEFT_OPEN:
                self._left_open(node, name, info)
            elif info.kind == "option" and (value is not None or (name in written and is_optional(info.type))):
                node.options.append(name)
            elif info.kind == "option" and info.default is not MISSING:
                simple = isinstance(info.default, str | int | float | None) and "${" not in str(info.default)
                written[name] = info.default if simple else _plain_default(spec, name, self._registry)
            elif value is None:
                self._default(node, name, info)
            else:
                here, absent = (*path, name), partial(self._default, node, name, info)
                make = partial(self._child, node, name, info)
                if info.kind == "slot":
                    make = partial(self._component, info.component, written, here, optional=info.default is None)
                self._put(node.children, written, here, make, absent)
        return node

    def _keep_tokenizer(self, data: dict[str, Any]) -> None:
        """Trained weights keep their tokenizer where other data took the place of theirs and names none."""
        before = self._layers.replaced.get(DATA)
        kept = before.get(TOKENIZER) if isinstance(before, dict) and self._layers.data.get("start") else None
        if kept and TOKENIZER not in data:
            data[TOKENIZER] = kept
            self._take_unread()

    def _put(
        self,
        children: dict[str, Any],
        holder: dict[str, Any],
        path: Keys,
        make: Callable[[Any], Any],
        absent: Callable[[], Any],
    ) -> None:
        """Puts what ``make`` makes of the value at ``path`` among the children; ``absent`` is for a reference to null.

        A reference waits until all else is planned: it may be to a default.
        """
        name: Any = path[-1]
        value = holder[name]
        use = value.get("use") if isinstance(value, dict) else value
        if not (isinstance(use, str) and "${" in use):
            children[name] = make(value)
            return

        def copy() -> None:
            copied = self._copy(holder, path)
            if copied is BROKEN:
                return
            if copied is None:
                absent()
            else:
                children[name] = make(copied)
            self.references.put(path, holder[name])  # now with its defaults

        children[name] = BROKEN
        self._waiting.append(copy)

    def _copy(self, holder: dict[str, Any], path: Keys) -> Any:
        """What ``holder`` has at ``path``; of an interpolation, a copy of what it refers to, put in its place."""
        key: Any = path[-1]
        if not is_reference(written := holder[key]):
            return written
        value = self.references.follow(self.references.config_at(path[:-1]), key, written, path)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
            self.references.count(_size(value), path)
        if value is None or isinstance(value, str | int | float | list | dict):
            holder[key] = value
            self.references.put(path, value)
        return value

    def _child(self, node: Node, name: str, info: FieldInfo, value: Any) -> Any:
        """The node of a group, or the nodes of a map."""
        path = (*node.path, name)
        if value == LEFT_OPEN:  # OmegaConf 2.3: a resolver gave it
            self._left_open(node, name, info)
            return BROKEN
        if info.kind == "slots":
            return self._map(info.component, value, path)
        spec: type[Spec] = info.specs[0]
        if isinstance(value, dict):
            return self._plan(spec, value, path)
        what = f"{found(value)} where a mapping belongs"
        return self._report.add(path, what, expected=f"options: {', '.join(fields_of(spec))}")

    def _default(self, node: Node, name: str, info: FieldInfo) -> None:
        """Gives a slot, a map or a group that is absent its default."""
        claim = self._registry.default(info.component) if info.claimed else None
        if claim is not None:
            node.written[name] = self._registry.short_name(claim)
            here = (*node.path, name)
            node.children[name] = self._component(info.component, node.written, here, node.written[name])
        elif info.default is MISSING:
            self._missing(node, name, info)
        else:
            node.children[name] = info.default
            node.written[name] = None if info.default is None else _plain_default(node.spec, name, self._registry)

    def _component(self, kind: str, holder: dict[str, Any], path: Keys, value: Any, optional: bool = False) -> Any:
        """The node that ``value``, of ``holder``, describes in a slot of ``kind``; ``BROKEN`` if it has a mistake."""
        if isinstance(value, str):
            key: Any = path[-1]
            holder[key] = value = {"use": value}
            self.references.put(path, value)
        if not isinstance(value, dict):
            what = f"{kind}: {found(value)} is not a component"
            return self._report.add(path, what, expected=f"{{use: <{kind}>, ...}}", list_with=self._listing(kind))
        if not value.keys().isdisjoint(("class", *FOREIGN)):
            return self._class(self._registry.kind(kind), value, path)
        at = (*path, "use") if "use" in value else path
        use = value.get("use")
        if isinstance(use, str) and "${" in use:
            use = self._copy(value, at)
        if not isinstance(use, str) or use == LEFT_OPEN:
            if use is BROKEN or at in self._report:
                return BROKEN
            what, expected = f"use: {found(use)} is not a name", f"the name of a {kind}"
            if use is None or use == LEFT_OPEN:
                at, expected = path, "use: <name>"
                what = f"the recipe leaves this {kind} open ('{LEFT_OPEN}')"
                what = f"'use' is missing: it names the {kind}" if use is None else what
            return self._report.add(at, what, expected=expected, list_with=self._listing(kind))
        try:
            place = self._layers.places.get(at) or self._report.place(at)
            component = self._registry.get(kind, use, home=place.plugin)
        except UnknownName as error:
            p = error.problem
            expected = p.expected or ("one of these, or null" if optional and not p.nearest else "")
            return self._report.add(
                at, p.what, expected=expected, nearest=p.nearest, list_with=p.list_with, notes=p.notes
            )
        except MoekitError as error:  # its plugin failed to load
            return self._report.add(at, str(error))
        return self._plan(component.spec_class, value, path, use)

    def _class(self, kind: Kind, value: dict[str, Any], path: Keys) -> Any:
        """The node of a class named by its import path; ``BROKEN`` if it has a mistake.

        Its arguments are checked when the class is imported.
        """
        wrong = next((name for name in (*FOREIGN, "use") if name in value), "")
        if not kind.imports:
            here = (*path, wrong if wrong in FOREIGN else "class")
            what = f"a {kind.name} cannot be a class by its import path"
            return self._report.add(here, what, expected="use: <name>", list_with=f"moekit ls {kind.plural}")
        if wrong:
            what = "'use' and 'class' exclude each other" if wrong == "use" else f"'{wrong}' is called 'class' here"
            expected = "class: package.module.Name, and its arguments next to it"
            return self._report.add((*path, wrong), what, expected=expected)
        if not is_import_path(value["class"]):
            what = f"class: {found(value['class'])} is not an import path"
            return self._report.add((*path, "class"), what, expected="package.module.Name")
        return Node(Imported, value, path, value["class"], options=[name for name in value if name != "class"])

    def _map(self, kind: str, value: Any, path: Keys) -> Any:
        if not isinstance(value, dict):
            shown = _as_map(value) if isinstance(value, list) else f"name: {{use: <{kind}>, ...}}"
            what = f"{found(value)} where a named map of {self._registry.kind(kind).plural} belongs"
            return self._report.add(path, what, expected=f"{{{shown}}}")
        entries: dict[str, Any] = {}
        for name, item in value.items():
            here = (*path, name)
            if not name.replace("-", "_").isidentifier():
                expected = "a letter, then letters, digits, '_' or '-'"
                entries[name] = self._report.add(here, f"'{name}' is not a valid name", expected=expected)
            elif item is not None:
                self._put(entries, value, here, partial(self._component, kind, value, here), partial(entries.pop, name))
        return entries

    def _unknown_option(self, node: Node, name: str) -> None:
        """Reports an option that the spec class does not have."""
        names = list(fields_of(node.spec))
        if name in node.spec.refused:
            what = f"'{show((*node.path, name))}' is not for a spec: {node.spec.refused[name]}"
            return self._unsound(node, name, what)
        groups = {group: info.specs[0] for group, info in fields_of(node.spec).items() if info.kind == "group"}
        inside = [f"{group}.{name}" for group, spec in groups.items() if name in fields_of(spec)]
        near = inside[0] if inside else nearest(str(name), names)
        many = node.use or (near and len(names) > MAX_LISTED)
        expected = "" if many and names else one_of(names) if names else "no option at all"
        listing = f"moekit show {node.use}" if node.use and names else ""
        self._unsound(node, name, f"{node} has no option '{name}'", expected, listing, nearest=near)

    def _missing(self, node: Node, name: str, info: FieldInfo) -> None:
        """Reports a field without a default that is not given."""
        here = (*node.path, name)
        value, listing = self._expected(node, name, info)
        if info.kind != "slot":
            value += f" ({info.help})" if info.help else ""
            listing = f"moekit show {node.use}" if node.use else ""
        written = here if here in self._report.places else (*node.path, "use") if node.use else node.path
        place = self._report.place(written)
        self._unsound(node, name, f"{node} needs '{name}'", f"{name}: {value}", listing, place=place)

    def _left_open(self, node: Node, name: str, info: FieldInfo) -> None:
        """Reports a field that is ``???``."""
        value, listing = self._expected(node, name, info)
        what = f"{name}: the recipe leaves this open ('{LEFT_OPEN}')"
        if info.kind == "slot":
            what, value = f"the recipe leaves this {info.component} open ('{LEFT_OPEN}')", "use: <name>"
        self._unsound(node, name, what, value, listing)

    def _listing(self, kind: str) -> str:
        """The command that lists the components of a kind."""
        return f"moekit ls {self._registry.kind(kind).plural}"

    def _expected(self, node: Node, name: str, info: FieldInfo) -> tuple[str, str]:
        """What a field takes, and the command that lists it."""
        if info.kind == "slot":
            return f"{{use: <{info.component}>, ...}}", self._listing(info.component)
        if info.kind != "option":
            return "a mapping", ""
        return f"{describe(info.type)} {'' if info.choices else info.range_text()}".rstrip(), ""

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
        if path not in self._report:  # its interpolation cannot be read
            self._report.add(path, what, expected=expected, nearest=nearest, list_with=list_with, place=place)


@cached
def _plain_default(spec: type[Spec], name: str, registry: Registry) -> Any:
    """The default of a field as plain data, shared: do not change it."""
    return plain_value(fields_of(spec)[name].default, registry)


def _refers(value: Any) -> bool:
    """Whether an interpolation is in a value."""
    if isinstance(value, dict | list):
        return any(map(_refers, value.values() if isinstance(value, dict) else value))
    return is_reference(value)


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
