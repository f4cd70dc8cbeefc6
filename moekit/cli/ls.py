"""``moekit ls``: list recipes and components."""

from __future__ import annotations

import argparse
import re
import sys

from moekit.cli import text
from moekit.component import Component
from moekit.registry import Registry, current, kind_named
from moekit.spec.recipe import KINDS, Recipe, plural

WIDE = 110  # a narrower terminal has no column of papers; ``moekit show`` prints them
SUMMARY = "list recipes and components"
EXAMPLES = """\
  moekit ls                   everything, kind by kind
  moekit ls routers           what 'router: {use: ...}' takes
  moekit ls recipes --json    for a program
"""
RECIPES = "recipes"
SIZES = "recipes at the sizes of their papers, to read and to count (moekit params NAME)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    kinds = ", ".join(plural(kind) for kind in KINDS)
    parser.add_argument("kind", nargs="?", help=f"one of {kinds}, or its singular")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each kind."""
    registry = current()
    kinds = [kind_named(args.kind)] if args.kind else list(KINDS)
    if args.json:
        import json

        print(json.dumps([_plain(registry, c) for kind in kinds for c in registry.components(kind)], indent=2))
        return 0
    tables = [table for kind in kinds for table in _tables(registry, kind)]
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


def _tables(registry: Registry, kind: str) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Titles with their rows: one table per kind, sorted by name; two for recipes, sorted by year and name."""
    components = registry.components(kind)
    if kind != Recipe.kind:
        return [(plural(kind), [_row(registry, c) for c in components])]
    by_year = sorted(components, key=lambda c: (c.year == 0, c.year, _numeric_key(c.name)))  # without a paper last
    trained, counted = ([c for c in by_year if c.trains is trains] for trains in (True, False))
    tables = [(RECIPES, trained), (SIZES, counted)] if counted else [(RECIPES, trained)]
    return [(title, [_row(registry, c) for c in some]) for title, some in tables]


def _numeric_key(name: str) -> list[str | int]:
    """A sort key by which 8b comes before 64b."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _row(registry: Registry, component: Component) -> tuple[str, str, str, str]:
    wide = (text.width() or WIDE) >= WIDE
    paper = component.paper if wide else str(component.year or "")
    return registry.short_name(component), component.summary, component.plugin, paper


def _plain(registry: Registry, component: Component) -> dict[str, object]:
    return {
        "kind": component.kind,
        "name": component.name,
        "use": registry.short_name(component),
        "summary": component.summary,
        "plugin": component.plugin,
        "paper": component.paper,
        **({"year": component.year, "trains": component.trains} if component.spec is Recipe else {}),
    }
