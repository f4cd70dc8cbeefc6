"""``moekit ls``: list recipes and components."""

from __future__ import annotations

import argparse
import re
from typing import Any

from moekit.cli import text
from moekit.cli.verbs import actions_of
from moekit.component import Component, RecipeFile
from moekit.registry import Registry, current
from moekit.spec.layers import head_of

WIDE = 110  # a narrower terminal has no column of papers; ``moekit show`` prints them
EXAMPLES = """\
  moekit ls                   everything, kind by kind
  moekit ls routers           what 'router: {use: ...}' takes
  moekit ls kinds             the kinds of component, those of plugins too
  moekit ls recipes --json    for a program
"""
RECIPES = "recipes"
SIZES = "recipes at the sizes of their papers, to read and to count (moekit params NAME)"

Entry = dict[str, Any]
"""What ``--json`` prints of a component or a recipe."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    kinds = ", ".join(kind.plural for kind in current().kinds.values())
    parser.add_argument(
        "kind",
        nargs="?",
        help=f"one of {kinds}, or its singular; {' or '.join(['recipes', 'kinds', *actions_of('ls')])}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each kind, then the recipes."""
    registry = current()
    if args.kind == "kinds":
        return _kinds(registry, as_json=args.json)
    recipes = args.kind in (None, "recipe", RECIPES)
    kinds = [] if recipes and args.kind else [registry.kind(args.kind)] if args.kind else list(registry.kinds.values())
    tables = {kind.plural: [_component(registry, c) for c in registry.components(kind.name)] for kind in kinds}
    if recipes:
        entries = [_recipe(registry, recipe) for recipe in registry.recipes]
        tables |= {RECIPES: entries} if args.json else _by_year(entries)
    if args.json:
        text.print_json([entry for entries in tables.values() for entry in entries])
        return 0
    rows = {title: [_row(entry) for entry in entries] for title, entries in tables.items() if entries or args.kind}
    everything = [row for some in rows.values() for row in some]
    widths = text.columns(everything) if everything else []
    blocks = [
        "\n".join([text.bold(title), *(text.table(some, fold=(1, 3), sizes=widths) or ["  none"])])
        for title, some in rows.items()
    ]
    print("\n\n".join(blocks) or "nothing is installed; see: moekit plugins")
    text.note_failed(registry)
    return 0


def _kinds(registry: Registry, *, as_json: bool) -> int:
    kinds = registry.kinds.values()
    if as_json:
        text.print_json([{"kind": k.name, "plural": k.plural, "summary": k.summary, "plugin": k.plugin} for k in kinds])
    else:
        print("\n".join([text.bold("kinds"), *text.table([(k.plural, k.summary, k.plugin) for k in kinds], fold=(1,))]))
    return 0


def _component(registry: Registry, component: Component) -> Entry:
    return {
        "kind": component.kind,
        "name": component.name,
        "use": registry.short_name(component),
        "summary": component.summary,
        "plugin": component.plugin,
        "paper": component.paper,
    }


def _recipe(registry: Registry, recipe: RecipeFile) -> Entry:
    head = head_of(recipe, registry)
    return {
        "kind": "recipe",
        "name": recipe.name,
        "use": registry.short_name(recipe),
        "summary": head.summary,
        "plugin": recipe.plugin,
        "paper": head.paper,
        "year": head.year,
        "trains": head.trains,
    }


def _row(entry: Entry) -> tuple[str, str, str, str]:
    wide = (text.width() or WIDE) >= WIDE
    paper = entry["paper"] if wide else str(entry.get("year") or "")
    return entry["use"], entry["summary"], entry["plugin"], paper


def _by_year(recipes: list[Entry]) -> dict[str, list[Entry]]:
    """One table of recipes that train, and one of those at published sizes; sorted by year and name."""
    rows = sorted(recipes, key=lambda entry: (entry["year"] == 0, entry["year"], _numeric_key(entry["name"])))
    tables = {RECIPES: [e for e in rows if e["trains"]], SIZES: [e for e in rows if not e["trains"]]}
    return tables if tables[SIZES] else {RECIPES: rows} if rows else {}


def _numeric_key(name: str) -> list[str | int]:
    """A sort key by which 8b comes before 64b."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
