"""``load`` makes a valid spec of a recipe's name, a file, a mapping, a config or a recipe.

Its layers are what is given, what that extends, and overrides on top. Of the merged layers the nodes are planned, their
values resolved and converted, and specs constructed from the leaves up.
"""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import omegaconf
from omegaconf import DictConfig, OmegaConf

from moekit.errors import PluginError, nearest
from moekit.registry import Registry, current
from moekit.spec.dumping import plain_tree
from moekit.spec.fields import (
    LARGEST,
    ConflictError,
    FieldInfo,
    Spec,
    describe,
    fields_of,
    is_a,
    is_optional,
    members,
    one_of,
)
from moekit.spec.kinds import Imported
from moekit.spec.layers import CONTENT, Layer, Merged, check_schema, extended, nested, open_source
from moekit.spec.planning import Node, Planner
from moekit.spec.recipe import Recipe
from moekit.spec.references import escape, register_plugins_resolvers
from moekit.spec.tree import (
    BROKEN,
    COMMAND_LINE,
    LEFT_OPEN,
    Keys,
    Place,
    Report,
    Tree,
    check_size,
    found,
    is_reference,
    read,
    reject,
    show,
)

OneSource = str | Path | Mapping[str, Any] | Recipe
Source = OneSource | Sequence[OneSource]
"""What a spec can be loaded from. A ``DictConfig`` is a mapping too, a ``ListConfig`` a sequence.

Lightning's command line parses by these types. ``os.PathLike`` in the place of ``Path`` would make mappings strings.
"""


def load(source: Source, overrides: Iterable[str] = (), *, registry: Registry | None = None) -> Recipe:
    """A recipe, composed with everything that it extends; interpolations are resolved and every option is checked.

    Args:
        source: the name of a recipe (``deepseek_v3``), a file (``my.yaml``), a mapping, an OmegaConf config, a loaded
            recipe, or a list of these, each merged over the one before.
        overrides: ``path.to.option=value`` strings, merged by the same rules as files.
        registry: the recipes and components (default: those of the installed plugins).

    Raises:
        SpecError: with every mistake found.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if isinstance(source, Recipe) and not overrides:
        return source
    registry = current() if registry is None else registry
    layers, name = read_layers(source, overrides, registry)
    merged = Merged(registry, layers)
    _check_requires(merged.data.get("requires"), merged, registry)
    if name and merged.data.get("name") in (None, ""):
        merged.data["name"] = escape(name)
    recipe = compose(merged, Recipe, registry)
    assert isinstance(recipe, Recipe)
    _check_requires(recipe.requires, merged, registry)  # an interpolation may have given them
    report = Report()
    for plugin, said in registry.call("moekit_recipe_loaded", {"recipe": recipe}):
        for sentence in said or ():
            report.add((), f"{sentence} (plugin '{plugin.name}')")
    report.raise_if_any()
    return recipe


def validate(source: Source, overrides: Iterable[str] = (), *, registry: Registry | None = None) -> None:
    """Checks a spec as ``load`` does, and returns nothing.

    Raises:
        SpecError: with every mistake found.
    """
    load(source, overrides, registry=registry)


def component_spec(kind: str, node: str | Mapping[str, Any] | DictConfig, *, registry: Registry | None = None) -> Spec:
    """The spec of one component: ``component_spec("router", {"use": "topk", "top_k": 2})``.

    Args:
        kind: ``router``, ``expert``, ``balancer``, ...
        node: what a spec file has in such a slot.
        registry: the components (default: those of the installed plugins).

    Raises:
        SpecError: with every mistake found.
        UnknownName: there is no such kind.
    """
    registry = current() if registry is None else registry
    of = registry.kind(kind)
    tree = plain_tree({"use": node} if isinstance(node, str) else node, registry=registry)
    if not isinstance(tree.data, dict):
        expected, listing = f"{{use: <{of.name}>, ...}}", f"moekit ls {of.plural}"
        reject(f"{of.name}: {found(tree.data)} is not a component", expected=expected, list_with=listing)
    return compose(Merged(registry, [tree]), of.name, registry)


def read_layers(source: Any, overrides: Iterable[str], registry: Registry) -> tuple[list[Tree], str]:
    """The layers of a spec, the lowest first, without ``extends``; and the name that it has if it states none.

    Args:
        source: a recipe, the name of one, a YAML file, a run's folder, a mapping, or a list of these, each over the
            one before.
        overrides: ``path.to.option=value``; they are over all.
        registry: the recipes that can be named.

    Raises:
        SpecError: a source cannot be read or has another spec format, ``extends`` goes in a circle, or an override
            is malformed.
    """
    if OmegaConf.is_list(source):
        source = OmegaConf.to_container(source)
    sources = source if isinstance(source, list | tuple) else [source]
    layers = extended([_layer_of(one, i, registry) for i, one in enumerate(sources)], registry)
    trees = [Tree({k: v for k, v in one.tree.data.items() if k != "extends"}, one.tree.places) for one in layers]
    named = [one.path.stem for one in layers if one.path]
    over = parse_overrides(overrides, registry)
    for tree in over:
        check_schema(tree)
    return [*trees, *over], named[-1] if named else ""


def _layer_of(source: Any, index: int, registry: Registry) -> Layer:
    if isinstance(source, Mapping | Spec):
        tree = plain_tree(source, registry=registry)
        if not isinstance(tree.data, dict):  # a DictConfig that is null or left open
            reject(f"the given config is {found(tree.data)}", expected=CONTENT)
        label = f"the given mapping {index or ''}".strip()
        return Layer(tree, label, None, label)
    if not isinstance(source, str | os.PathLike):
        reject(f"{found(source)} is not a spec", expected="a recipe's name, a YAML file, a mapping, or a list of them")
    return open_source(source, registry)


def parse_overrides(overrides: Iterable[str], registry: Registry) -> list[Tree]:
    """``a.b.c=value`` strings as layers, mostly one; of two overrides of one path the later wins.

    They are merged with each other before they are merged over a recipe, so that ``router.use`` may come after
    ``router.top_k``. An override of a part of an earlier ``a=${...}`` begins another layer.

    Raises:
        SpecError: with every override that is malformed.
    """
    report = Report()
    out: list[Merged] = []
    place = Place(COMMAND_LINE)
    for text in overrides:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            report.add((), f"override '{text}' is malformed", expected="path.to.option=value", place=place)
        elif keys[0] == "extends":
            expected = "a file that extends the recipe"
            report.add(keys[:1], "extends cannot be set by an override", expected=expected, place=place)
        else:
            check_size(keys, 0, COMMAND_LINE)
            tree = read(value, COMMAND_LINE, lines=False, prefix=keys) if value.strip() else Tree("", {})
            data = nested(keys, tree.data)
            around: dict[Keys, Place] = {keys[:end]: place for end in range(1, len(keys) + 1)}
            if not out or _crosses_reference(out[-1].data, data):
                out.append(Merged(registry))
            out[-1].lay(Tree(data, {**around, **tree.places}))
    report.raise_if_any()
    return [Tree(merged.data, merged.places) for merged in out]


def _crosses_reference(base: Any, over: Any) -> bool:
    """Whether ``over`` has a mapping where ``base`` has an interpolation."""
    if not isinstance(over, dict):
        return False
    return is_reference(base) or (
        isinstance(base, dict) and any(_crosses_reference(base.get(k), over[k]) for k in over)
    )


def _check_requires(wanted: Any, layers: Merged, registry: Registry) -> None:
    """Rejects a spec whose plugins are missing or have another version, before anything that depends on them is read.

    Raises:
        SpecError: with every requirement that is not met.
    """
    if not wanted or not isinstance(wanted, dict):
        return  # composing reports what is not a mapping
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    plugins = {plugin.name: plugin for plugin in registry.plugins}
    report = Report(layers.places)
    for name, versions in wanted.items():
        if isinstance(versions, bool) or not isinstance(versions, str | int | float):
            continue  # composing reports it
        versions = str(versions)  # composing reads numbers as text
        at: Keys = ("requires", name)
        try:
            specifier = SpecifierSet(versions)
        except InvalidSpecifier:
            report.add(at, f"'{versions}' is not a version requirement", expected="versions, such as '>=1.2,<2'")
            continue
        plugin = plugins.get(name)
        if plugin is None:
            why = ", which is not installed"
        elif plugin.error is not None:
            why = f", which failed to load: {plugin.error}"
        elif not plugin.version:
            why = f" {versions}, which states no version"
        elif specifier.contains(plugin.version, prereleases=True):
            continue
        else:
            why = f" {versions}; version {plugin.version} is installed"
        report.add(at, f"this spec requires plugin '{name}'{why}", list_with="moekit plugins")
    report.raise_if_any()


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
    out = _Builder(planner, report).build(node)
    if out is BROKEN and not report:
        planner.references.report_open()
    report.keep(planner.references.is_news)
    report.raise_if_any()
    assert isinstance(out, Spec)
    return out


class _Builder:
    def __init__(self, planner: Planner, report: Report) -> None:
        self.planner = planner
        self.report = report
        self.origin: dict[Keys, str] = {}
        self.values = Values(report, self.origin)

    def build(self, node: Any) -> Any:
        """The spec of ``node``; ``BROKEN`` where the node or one of its children has a mistake."""
        if not isinstance(node, Node):
            return node
        if node.spec is Imported:
            arguments = {name: self._option(node, name, ARGUMENT) for name in node.options}
            return BROKEN if _broken(arguments) else Imported(path=node.use, arguments=arguments)
        given: dict[str, Any] = {}
        sound = node.sound
        for name, info in fields_of(node.spec).items():
            if name in node.options:
                value, kind = node.written[name], type(node.written[name])
                plain = kind in info.scalars and (
                    kind in (bool, type(None)) or ("${" not in value if kind is str else not info.fault(value))
                )
                given[name] = value if plain else self._option(node, name, info)
            elif isinstance(child := node.children.get(name), Node):
                given[name] = self.build(child)
            elif info.kind == "slots" and isinstance(child, dict):
                given[name] = entries = {key: self.build(item) for key, item in child.items()}
                sound = sound and not _broken(entries)
            elif name in node.children:
                given[name] = child
            sound = sound and given.get(name) is not BROKEN
        if not sound:
            return BROKEN
        try:
            return node.spec.of_valid(given)
        except ValueError as error:
            sentences = error.sentences if isinstance(error, ConflictError) else (str(error),)
        except Exception as error:  # a mistake in a plugin
            sentences = (f"{node} cannot be checked: {type(error).__name__}: {error}",)
        for sentence in sentences:
            self.report.add(node.path, sentence)
        return BROKEN

    def _option(self, node: Node, name: str, info: FieldInfo) -> Any:
        path, written = (*node.path, name), node.written[name]
        value = self.planner.value(written, path) if isinstance(written, str | dict | list) else written
        if value is BROKEN or any(here[: len(path)] == path for here in self.planner.unread):
            return BROKEN
        if value is not written and isinstance(written, str):  # it was an interpolation
            self.origin[path] = f" (from {written})"
        try:
            return self.values.read(value, info, path)
        except PluginError as error:
            raise PluginError(f"{node}, option '{name}': {error}") from error


class Values:
    """Converts values to their declared types, by OmegaConf's nodes, and reports those that do not fit.

    Args:
        report: receives the problems.
        origin: the source of the value at a path, for messages: `` (from ${data.vocab})``.
    """

    def __init__(self, report: Report, origin: Mapping[Keys, str] | None = None) -> None:
        self.report = report
        self.origin = {} if origin is None else origin

    def read(self, value: Any, info: FieldInfo, path: Keys) -> Any:
        """``value`` as the type and in the range of ``info``; else ``BROKEN``."""
        limits = "" if info.choices else info.range_text()
        out = self.convert(value, info.type, path, limits)
        if out is BROKEN or not info.fault(out):
            return out
        for here, item in _leaves(out, path):
            if said := info.fault(item):
                limits = limits or ("" if said == "is not finite" else f"of at most {LARGEST:,}")
                self._wrong(here, item, said, expected=f"{describe(info.type)} {limits}".rstrip())
        return BROKEN

    def convert(self, value: Any, hint: Any, path: Keys, limits: str = "") -> Any:
        """``value`` as the type ``hint``; else ``BROKEN``. Messages add ``limits`` to the expected type."""
        if value == LEFT_OPEN:
            what = f"{_name(path)}: the recipe leaves this open ('{LEFT_OPEN}')"
            return self.report.add(path, what, expected=_expected(hint, limits))
        if hint is Any:
            return self._plain(value, path)
        if value is None and is_optional(hint):
            return None
        members_of = members(hint)
        if len(members_of) > 1:
            for fits in (_is_exactly, _converts):
                for member in members_of:
                    if fits(value, member):
                        return self.convert(value, member, path, limits)
            return self._wrong(path, value, f"is not {describe(hint)}", expected=_expected(hint, limits))
        declared, (hint,) = hint, members_of
        origin = typing.get_origin(hint)
        if origin is Literal:
            return self._choice(value, typing.get_args(hint), path)
        if hint in (list, tuple) or origin in (list, tuple):
            return self._list(value, hint, path, declared, limits)
        if hint is dict or origin in (dict, Mapping):
            return self._dict(value, hint, path, declared, limits)
        out = scalar(value, hint)
        if out is BROKEN:
            quoted = isinstance(value, int | float) and not isinstance(value, bool) and hint is str
            expected = _expected(declared, limits) + (", in quotes" if quoted else "")
            self._wrong(path, value, f"is not {describe(hint)}", expected=expected)
        return out

    def _choice(self, value: Any, choices: tuple[Any, ...], path: Keys) -> Any:
        for choice in choices:
            if scalar(value, type(choice)) == choice:
                return choice
        texts = [found(c).strip("'") for c in choices]
        near = nearest(value, texts) if isinstance(value, str) else ""
        return self._wrong(path, value, "is none of its choices", expected=one_of(texts), nearest=near)

    def _list(self, value: Any, hint: Any, path: Keys, declared: Any, limits: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(path, value, "is not a list", expected=_expected(declared, limits))
        args = typing.get_args(hint) or (Any,)
        many = tuple if typing.get_origin(hint) is tuple or hint is tuple else list
        fixed = many is tuple and len(args) > 1 and args[-1] is not ...
        if fixed and len(value) != len(args):
            return self._wrong(path, value, f"of {len(value)}", expected=f"a list of {len(args)}")
        hints = args if fixed else (args[0],) * len(value)
        items = [self.convert(v, h, (*path, i), limits) for i, (v, h) in enumerate(zip(value, hints, strict=True))]
        return BROKEN if any(item is BROKEN for item in items) else many(items)

    def _dict(self, value: Any, hint: Any, path: Keys, declared: Any, limits: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, value, "is not a mapping", expected=_expected(declared, limits))
        for key in value:
            if not isinstance(key, str):
                said = f"has key {key!r}, which is not text"
                return self._wrong(path, value, said, expected=_expected(declared, limits))
        args = typing.get_args(hint)
        inner = args[1] if args else Any
        items = {k: self.convert(v, inner, (*path, k), limits) for k, v in value.items() if v is not None}
        return BROKEN if _broken(items) else items

    def _plain(self, value: Any, path: Keys) -> Any:
        if isinstance(value, Mapping):
            return self._dict(value, dict[str, Any], path, None, "")
        if isinstance(value, list | tuple):
            return self._list(value, list[Any], path, None, "")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return self._wrong(path, value, "is not a plain value", expected="text, a number, a list or a mapping")

    def _wrong(self, path: Keys, value: Any, said: str, *, expected: str, nearest: str = "") -> Any:
        what = f"{_name(path)}: {found(value)}{self.origin.get(path, '')} {said}"
        return self.report.add(path, what, expected=expected, nearest=nearest)


def _broken(values: Mapping[str, Any]) -> bool:
    """Whether one of the values has a mistake. Not ``in``, which would compare them."""
    return any(value is BROKEN for value in values.values())


def _leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    """Every plain value in a list or mapping, with its path."""
    if isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _expected(hint: Any, limits: str) -> str:
    """A declared type and its limits, as messages have them."""
    return "" if hint is None else f"{describe(hint)} {limits}".rstrip()


def _name(path: Keys) -> str:
    """The last key of a path, with the indices below it."""
    start = next((i for i in range(len(path) - 1, -1, -1) if isinstance(path[i], str)), 0)
    return show(path[start:]) or "value"


_NODES: dict[type, Any] = {
    int: omegaconf.IntegerNode(),
    float: omegaconf.FloatNode(),
    bool: omegaconf.BooleanNode(),
    str: omegaconf.StringNode(),
}
"""OmegaConf's nodes for scalar types, which convert values to them."""


def scalar(value: Any, kind: type) -> Any:
    """``value`` as int, float, bool or str if the conversion loses nothing; else ``BROKEN``.

    Raises:
        PluginError: ``kind`` is another type.
    """
    if kind not in _NODES:
        raise PluginError(
            f"an option cannot be of type {kind!r}: int, float, bool, str, Literal, list and dict are read"
        )
    if value is None or (isinstance(value, bool) != (kind is bool) and not isinstance(value, str)):
        return BROKEN
    if kind is int and isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else BROKEN
    if kind is str and isinstance(value, float):
        return BROKEN  # '2412.10' would come out as '2412.1'
    try:
        out = _NODES[kind].validate_and_convert(value)
    except (omegaconf.errors.ValidationError, ValueError, OverflowError):
        return BROKEN
    return BROKEN if isinstance(out, float) and math.isnan(out) else out


def _is_exactly(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return is_a(value, hint)
    return type(value) is (typing.get_origin(hint) or hint)


def _converts(value: Any, hint: Any) -> bool:
    return Values(trial := Report()).convert(value, hint, ()) is not BROKEN and not trial
