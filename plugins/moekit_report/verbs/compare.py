"""``moekit compare``: runs side by side, by tokens and by time, seeds of one recipe pooled."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit_report.comparison import Comparison

EXAMPLES = """\
  moekit compare switch deepseek_v3                    the latest run of each
  moekit compare runs/switch/*                         all runs of a name; seeds of one recipe are pooled
  moekit compare switch deepseek_v3 --to compared.html
  moekit compare switch deepseek_v3 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or names (their latest runs)")
    parser.add_argument("--to", default="", metavar="FILE", help="also write an HTML page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Prints a table.

    Raises:
        MoekitError: there is no such run, or one has logged nothing.
    """
    from moekit import run as runs
    from moekit_report.comparison import compare_runs

    compared = compare_runs([runs.open(each, out=args.out) for each in args.runs])
    if args.json:
        print(json.dumps(compared.plain(), indent=1))
    else:
        print("\n".join(lines(compared)))
    if args.to:
        write_page(compared, Path(args.to))
    return 0


def lines(compared: Comparison) -> list[str]:
    """The table for a terminal, then what the recipes differ in."""
    from moekit.cli import text
    from moekit_report.comparison import table_of

    out = text.table(text.to_the_right(table_of(compared)))
    for group in compared.groups[1:]:
        if group.changes:
            out += ["", text.bold(f"{compared.groups[0].label} -> {group.label}")]
            out += [f"  {change}" for change in group.changes]
    return out


def write_page(compared: Comparison, path: Path) -> None:
    """Writes the comparison as one HTML file that loads nothing.

    Raises:
        OSError: it cannot be written.
    """
    from moekit.files import replace_text
    from moekit_report.page.compared import html_of

    replace_text(path, html_of(compared))
