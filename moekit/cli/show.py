"""``moekit show``: explain a component by its spec, or a recipe."""

from __future__ import annotations

import argparse

from moekit.cli import text
from moekit.cli.describe import capabilities, docstring, option_rows, slot_rows
from moekit.component import Component
from moekit.errors import Problem, UnknownName, nearest
from moekit.registry import Registry, current, kind_named
from moekit.spec.fields import required
from moekit.spec.recipe import Recipe, plural

SUMMARY = "explain a component or a recipe"
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
    for component in named(registry, args.name, kind_named(args.kind) if args.kind else None):
        if component.spec is Recipe:
            from moekit.cli.recipe import page  # reads YAML

            pages.append(page(registry, component))
        else:
            pages.append(_page(registry, component, doc=args.doc))
    print("\n\n\n".join("\n".join(page) for page in pages))
    return 0


def named(registry: Registry, name: str, kind: str | None = None) -> list[Component]:
    """Every component that ``name`` matches: a name, ``kind/name``, ``plugin/name``, or the file of a recipe.

    Raises:
        UnknownName: no component has the name.
        PluginError: a kind is given, and the plugin in the name failed to load.
    """
    if name.endswith((".yaml", ".yml")):
        return [Component(name=name, spec=Recipe, target=name, summary="")]
    components = registry.components(kind)
    found = [c for c in components if name in (c.name, c.full_name, f"{c.kind}/{c.name}", f"{plural(c.kind)}/{c.name}")]
    if found:
        return found
    if kind is not None:
        return [registry.get(kind, name)]  # raises
    choices = [c.name for c in components]
    if "/" in name:
        choices += [c.full_name for c in components] + [f"{c.kind}/{c.name}" for c in components]
    raise UnknownName(
        Problem(
            what=f"nothing is named '{name}'",
            nearest=nearest(name, choices),
            list_with="moekit ls",
            notes=registry.notes(),
        )
    )


def _page(registry: Registry, component: Component, *, doc: bool) -> list[str]:
    made = component.target
    target = made if isinstance(made, str) else f"{made.__module__}:{made.__qualname__}"
    lines = [text.bold(f"{component.kind} {component.name}"), *text.paragraph(component.summary)]
    about = [("paper", component.paper), ("plugin", f"{component.plugin} ({registry.origin(component)})")]
    lines += ["", *text.table([row for row in [*about, ("class", target)] if row[1]], fold=(1,))]
    lines += section("options", list(option_rows(component.spec)), fold=(1, 4))
    lines += section("slots", list(slot_rows(component.spec)), fold=(2,))
    lines += section("capabilities", list(capabilities(component.spec).items()), fold=(1,))
    must = "".join(f", {name}: ..." for name in required(component.spec))
    lines += ["", text.bold("in YAML"), f"  {{use: {registry.short_name(component)}{must}}}"]
    if doc:
        lines += ["", text.bold("docstring"), *(f"  {line}".rstrip() for line in docstring(component).splitlines())]
    return lines


def section(title: str, rows: list[tuple[str, ...]], *, fold: tuple[int, ...]) -> list[str]:
    """An empty line, a title and a table; no lines at all if there are no rows."""
    return ["", text.bold(title), *text.table(rows, fold=fold)] if rows else []
