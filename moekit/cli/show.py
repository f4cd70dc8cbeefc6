"""``moekit show``: explain a component by its spec alone, without torch; or a recipe."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moekit.cli import text
from moekit.component import Component, RecipeFile, import_string
from moekit.errors import Problem, UnknownName, nearest
from moekit.registry import Registry, current
from moekit.spec.fields import FieldInfo, Spec, fields_of, is_optional, members, required

EXAMPLES = """\
  moekit show topk                    every component of that name
  moekit show router/topk --doc       by kind, with the docstring of its class
  moekit show acme/topk               by plugin, where two offer the name
  moekit show deepseek_v3             a recipe: its components, its YAML, what to try next
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("name", help="name, kind/name or plugin/name; or a YAML file")
    parser.add_argument("--kind", help="only components of this kind")
    parser.add_argument("--doc", action="store_true", help="also print the docstring of its class")


def run(args: argparse.Namespace) -> int:
    """Prints a page for each component of that name."""
    registry = current()
    pages = []
    for offer in named(registry, args.name, args.kind):
        if isinstance(offer, RecipeFile):
            from moekit.cli.recipe import page  # reads YAML

            pages.append(page(registry, offer))
        else:
            pages.append(_page(registry, offer, doc=args.doc))
    print("\n\n\n".join("\n".join(page) for page in pages))
    return 0


def named(registry: Registry, name: str, kind: str | None = None) -> list[Component | RecipeFile]:
    """Every component and recipe that ``name`` matches: a name, ``kind/name``, ``plugin/name``, or a recipe's file.

    Raises:
        UnknownName: nothing has the name, or there is no such kind.
        PluginError: a kind is given, and the plugin in the name failed to load.
    """
    if name.endswith((".yaml", ".yml")):
        return [RecipeFile(name=name, path=Path(name))]
    recipes = kind in ("recipe", "recipes")
    components = [] if recipes else registry.components(kind)
    offers: list[Component | RecipeFile] = [*(registry.recipes if kind is None or recipes else []), *components]
    plurals = {"recipe": "recipes", **{each.name: each.plural for each in registry.kinds.values()}}
    names = {id(o): (o.name, o.full_name, f"{o.kind}/{o.name}", f"{plurals[o.kind]}/{o.name}") for o in offers}
    if found := [offer for offer in offers if name in names[id(offer)]]:
        return found
    if kind is not None:
        return [registry.recipe(name) if recipes else registry.get(kind, name)]  # raises
    choices = [offer.name for offer in offers]
    if "/" in name:
        choices += [offer.full_name for offer in offers] + [f"{offer.kind}/{offer.name}" for offer in offers]
    near, what = nearest(name, choices), f"nothing is named '{name}'"
    raise UnknownName(Problem(what=what, nearest=near, list_with="moekit ls", notes=registry.notes()))


def _page(registry: Registry, component: Component, *, doc: bool) -> list[str]:
    made, spec = component.target, component.spec_class
    target = made if isinstance(made, str) else import_string(made)
    lines = [text.bold(f"{component.kind} {component.name}"), *text.paragraph(component.summary)]
    about = [("paper", component.paper), ("plugin", f"{component.plugin} ({registry.origin(component)})")]
    lines += ["", *text.table([row for row in [*about, ("class", target)] if row[1]], fold=(1,))]
    lines += _section("options", list(option_rows(spec)), fold=(1, 4))
    lines += _section("slots", list(slot_rows(spec)), fold=(2,))
    lines += _section("capabilities", list(capabilities(spec).items()), fold=(1,))
    must = "".join(f", {name}: ..." for name in required(spec))
    lines += ["", text.bold("in YAML"), f"  {{use: {registry.short_name(component)}{must}}}"]
    if doc:
        lines += ["", text.bold("docstring"), *(f"  {line}".rstrip() for line in docstring(component).splitlines())]
    return lines


def _section(title: str, rows: list[tuple[str, ...]], *, fold: tuple[int, ...]) -> list[str]:
    """An empty line, a title and a table; no lines at all if there are no rows."""
    return ["", text.bold(title), *text.table(rows, fold=fold)] if rows else []


def option_rows(spec: type[Spec], prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """Name, type, default, range and help of each option; options of a group are named ``group.option``."""
    for name, info in fields_of(spec).items():
        default = _default_text(info)
        if info.kind == "option":
            limits = "" if info.choices else info.range_text()
            yield f"{prefix}{name}", type_text(info.type), default, limits, info.help
        elif info.kind == "group":
            yield f"{prefix}{name}", "group", default, "", info.help
            yield from option_rows(info.specs[0], f"{prefix}{name}.")


def slot_rows(spec: type[Spec], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, accepted kind, help, and the command that lists the choices, of each slot."""
    for name, info in fields_of(spec).items():
        if info.kind == "group":
            yield from slot_rows(info.specs[0], f"{prefix}{name}.")
        elif info.kind != "option":
            takes = f"{info.component}s by name" if info.kind == "slots" else info.component
            takes += ", optional" if info.kind == "slot" and _default_text(info) else ""
            yield f"{prefix}{name}", takes, info.help, f"moekit ls {current().kind(info.component).plural}"


def capabilities(spec: type[Spec]) -> dict[str, str]:
    """The capabilities that a spec class states in class variables, such as the form of routing.

    A property in place of a class variable is printed as 'depends on its options'.
    """
    names: dict[str, None] = {}
    for base in reversed(spec.__mro__):
        for name, annotation in vars(base).get("__annotations__", {}).items():
            if "ClassVar" in str(annotation) and name not in ("kind", "refused"):
                names[name] = None
    return {name: _capability(getattr(spec, name)) for name in names if not name.startswith("_")}


def docstring(component: Component) -> str:
    """The docstring of a component's target, read from its source without importing it.

    Raises:
        PluginError: the source does not define the target, which cannot be imported either.
    """
    if isinstance(component.target, str):
        module, _, name = component.target.partition(":")
        found = importlib.util.find_spec(module)
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                    return ast.get_docstring(node) or ""
    return inspect.getdoc(component.load()) or ""


def type_text(hint: Any) -> str:
    """A type as text: ``int``, ``softmax | sigmoid``, ``list of float``, ``int | null``."""
    words: list[str] = []
    for member in members(hint):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal:
            words += map(value_text, args)
        elif origin in (list, tuple):
            words.append(f"list of {type_text(args[0])}")
        elif origin is dict:
            words.append(f"map of {type_text(args[1])}")
        else:
            words.append("any" if member is Any else str(getattr(member, "__name__", member)))
    return " | ".join([*words, "null"] if is_optional(hint) else words)


def value_text(value: Any) -> str:
    """A value as in YAML: ``null``, ``true``, ``0.001``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {value_text(v)}" for k, v in value.items()) + "}"
    return "''" if value == "" else str(value)


def _default_text(info: FieldInfo) -> str:
    default = info.default
    if default is dataclasses.MISSING:
        return "" if info.kind == "slot" else "required"
    return "optional" if default is None and info.kind != "option" else value_text(default)


def _capability(value: Any) -> str:
    if isinstance(value, property):
        return "depends on its options"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(sorted(map(str, value))) if isinstance(value, frozenset | set | tuple) else str(value)
