"""``moekit show``: explain a component by its spec, or a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from moekit.cli import text
from moekit.cli.describe import capabilities, docstring, option_rows, slot_rows
from moekit.component import Component, RecipeFile, import_string
from moekit.errors import Problem, UnknownName, nearest
from moekit.registry import Registry, current
from moekit.spec.fields import required

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
    offered = registry.recipes if kind is None or recipes else []
    found: list[Component | RecipeFile] = [
        r for r in offered if name in (r.name, r.full_name, f"recipe/{r.name}", f"recipes/{r.name}")
    ]
    found += [
        c
        for c in components
        if name in (c.name, c.full_name, f"{c.kind}/{c.name}", f"{registry.kinds[c.kind].plural}/{c.name}")
    ]
    if found:
        return found
    if kind is not None:
        return [registry.recipe(name) if recipes else registry.get(kind, name)]  # raises
    offers: list[tuple[str, Component | RecipeFile]] = [(c.kind, c) for c in components]
    offers += [("recipe", r) for r in offered]
    choices = [offer.name for _, offer in offers]
    if "/" in name:
        choices += [offer.full_name for _, offer in offers] + [f"{what}/{offer.name}" for what, offer in offers]
    raise UnknownName(
        Problem(
            what=f"nothing is named '{name}'",
            nearest=nearest(name, choices),
            list_with="moekit ls",
            notes=registry.notes(),
        )
    )


def _page(registry: Registry, component: Component, *, doc: bool) -> list[str]:
    made, spec = component.target, component.spec_class()
    target = made if isinstance(made, str) else import_string(made)
    lines = [text.bold(f"{component.kind} {component.name}"), *text.paragraph(component.summary)]
    about = [("paper", component.paper), ("plugin", f"{component.plugin} ({registry.origin(component)})")]
    lines += ["", *text.table([row for row in [*about, ("class", target)] if row[1]], fold=(1,))]
    lines += section("options", list(option_rows(spec)), fold=(1, 4))
    lines += section("slots", list(slot_rows(spec)), fold=(2,))
    lines += section("capabilities", list(capabilities(spec).items()), fold=(1,))
    must = "".join(f", {name}: ..." for name in required(spec))
    lines += ["", text.bold("in YAML"), f"  {{use: {registry.short_name(component)}{must}}}"]
    if doc:
        lines += ["", text.bold("docstring"), *(f"  {line}".rstrip() for line in docstring(component).splitlines())]
    return lines


def section(title: str, rows: list[tuple[str, ...]], *, fold: tuple[int, ...]) -> list[str]:
    """An empty line, a title and a table; no lines at all if there are no rows."""
    return ["", text.bold(title), *text.table(rows, fold=fold)] if rows else []
