"""``moekit ls``: list recipes, components and runs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from moekit.cli import text
from moekit.component import Component, RecipeFile
from moekit.registry import Registry, current
from moekit.spec.heads import Head, head_of

WIDE = 110  # a narrower terminal has no column of papers; ``moekit show`` prints them
EXAMPLES = """\
  moekit ls                   everything, kind by kind
  moekit ls routers           what 'router: {use: ...}' takes
  moekit ls kinds             the kinds of component, those of plugins too
  moekit ls recipes --json    for a program
  moekit ls runs              your runs, with their state and result
"""
RECIPES = "recipes"
SIZES = "recipes at the sizes of their papers, to read and to count (moekit params NAME)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    kinds = ", ".join(kind.plural for kind in current().kinds.values())
    parser.add_argument("kind", nargs="?", help=f"one of {kinds}, or its singular; recipes; kinds; or runs")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each kind, then the recipes."""
    registry = current()
    if args.kind == "kinds":
        return _kinds(registry, as_json=args.json)
    if args.kind == "runs":
        from moekit.cli import ls_runs  # reading runs takes torch

        return ls_runs.run(Path(args.out), as_json=args.json)
    recipes = args.kind in (None, "recipe", RECIPES)
    kinds = [] if recipes and args.kind else [registry.kind(args.kind)] if args.kind else list(registry.kinds.values())
    heads = [(recipe, head_of(recipe, registry)) for recipe in registry.recipes] if recipes else []
    if args.json:
        components = [_plain(registry, c) for kind in kinds for c in registry.components(kind.name)]
        _print_json([*components, *(_plain_recipe(registry, recipe, head) for recipe, head in heads)])
        return 0
    tables = [(kind.plural, [_row(registry, c) for c in registry.components(kind.name)]) for kind in kinds]
    tables += _recipe_tables(registry, heads)
    everything = [row for _, rows in tables for row in rows]
    widths = text.columns(everything) if everything else []
    blocks = []
    for title, rows in tables:
        if rows or args.kind:
            lines = text.table(rows, fold=(1, 3), sizes=widths) or ["  none"]
            blocks.append("\n".join([text.bold(title), *lines]))
    print("\n\n".join(blocks) or "nothing is installed; see: moekit plugins")
    for plugin in registry.failed:
        print(f"note: plugin '{plugin.name}' failed to load; see: moekit plugins", file=sys.stderr)
    return 0


def _kinds(registry: Registry, *, as_json: bool) -> int:
    kinds = registry.kinds.values()
    if as_json:
        _print_json([{"kind": k.name, "plural": k.plural, "summary": k.summary, "plugin": k.plugin} for k in kinds])
    else:
        print("\n".join([text.bold("kinds"), *text.table([(k.plural, k.summary, k.plugin) for k in kinds], fold=(1,))]))
    return 0


def _recipe_tables(
    registry: Registry, heads: list[tuple[RecipeFile, Head]]
) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """One table of recipes that train, and one of those at published sizes; sorted by year and name."""
    by_year = sorted(heads, key=lambda both: (both[1].year == 0, both[1].year, _numeric_key(both[0].name)))
    trained, counted = ([both for both in by_year if both[1].trains is trains] for trains in (True, False))
    tables = [(RECIPES, trained), (SIZES, counted)] if counted else [(RECIPES, trained)] if trained else []
    return [(title, [_recipe_row(registry, recipe, head) for recipe, head in some]) for title, some in tables]


def _numeric_key(name: str) -> list[str | int]:
    """A sort key by which 8b comes before 64b."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _row(registry: Registry, component: Component) -> tuple[str, str, str, str]:
    paper = component.paper if (text.width() or WIDE) >= WIDE else ""
    return registry.short_name(component), component.summary, component.plugin, paper


def _recipe_row(registry: Registry, recipe: RecipeFile, head: Head) -> tuple[str, str, str, str]:
    paper = head.paper if (text.width() or WIDE) >= WIDE else str(head.year or "")
    return registry.short_name(recipe), head.summary, recipe.plugin, paper


def _plain(registry: Registry, component: Component) -> dict[str, object]:
    return {
        "kind": component.kind,
        "name": component.name,
        "use": registry.short_name(component),
        "summary": component.summary,
        "plugin": component.plugin,
        "paper": component.paper,
    }


def _plain_recipe(registry: Registry, recipe: RecipeFile, head: Head) -> dict[str, object]:
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


def _print_json(plain: object) -> None:
    import json  # the tables need none

    print(json.dumps(plain, indent=2))
