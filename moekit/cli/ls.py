"""``moekit ls``: what recipes and components there are."""

from __future__ import annotations

import argparse
import sys

from moekit.cli import text
from moekit.component import Component
from moekit.registry import Registry, current, kind_named
from moekit.spec.recipe import KINDS, plural

WIDE = 110  # below it there is no room for the column of papers; ``moekit show`` tells them
SUMMARY = "list recipes and components"
EXAMPLES = """\
  moekit ls                   everything, kind by kind
  moekit ls routers           what 'router: {use: ...}' takes
  moekit ls recipes --json    for a program
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    kinds = ", ".join(plural(kind) for kind in KINDS)
    parser.add_argument("kind", nargs="?", help=f"one of {kinds} (the singular will do)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each kind."""
    registry = current()
    kinds = [kind_named(args.kind)] if args.kind else list(KINDS)
    if args.json:
        import json

        print(json.dumps([_plain(registry, c) for kind in kinds for c in registry.components(kind)], indent=2))
        return 0
    rows = {kind: [_row(registry, c) for c in registry.components(kind)] for kind in kinds}
    everything = [row for kind in kinds for row in rows[kind]]
    widths = text.columns(everything) if everything else []
    blocks = []
    for kind in kinds:
        if rows[kind] or args.kind:
            lines = text.table(rows[kind], fold=(1, 3), sizes=widths) or ["  none"]
            blocks.append("\n".join([text.bold(plural(kind)), *lines]))
    print("\n\n".join(blocks) or "nothing is installed; see: moekit plugins")
    for plugin in registry.failed:
        print(f"note: plugin '{plugin.name}' failed to load; see: moekit plugins", file=sys.stderr)
    return 0


def _row(registry: Registry, component: Component) -> tuple[str, str, str, str]:
    paper = component.paper if (text.width() or WIDE) >= WIDE else ""
    return registry.short_name(component), component.summary, component.plugin, paper


def _plain(registry: Registry, component: Component) -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "use": registry.short_name(component),
        "summary": component.summary,
        "plugin": component.plugin,
        "paper": component.paper,
    }
