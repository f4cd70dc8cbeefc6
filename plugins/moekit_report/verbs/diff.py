"""``moekit config diff``: what two specs differ in."""

from __future__ import annotations

import argparse

from moekit.cli import text
from moekit.cli.config import expect, split
from moekit.spec import load
from moekit_report.diffing import diff

EXAMPLES = """\
  moekit config diff jacobs1991 deepseek_v3                  how two papers differ
  moekit config diff deepseek_v3 model.moe.router.top_k=4    what an override changes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("sources", nargs="*", metavar="NAME|key=value", help="recipes or YAML files, and overrides")


def run(args: argparse.Namespace) -> int:
    """Prints the differences.

    Raises:
        MoekitError: there are too few or too many names, or a spec has mistakes.
    """
    names, overrides = split(args.sources)
    enough = len(names) == 2 or (len(names) == 1 and bool(overrides))
    expect(enough, "config diff", names, "two names, or one name and overrides")
    first, second = names[0], names[-1]
    changes = diff(load(first), load(second, overrides))
    if not changes:
        print("no difference")
        return 0
    title = " ".join([second, *overrides]) if first == second else second
    rows = [("", first, title), *((c.path, *(side.replace("()", "") for side in c.sides())) for c in changes)]
    head, *lines = text.table(rows, indent=0, fold=(1, 2))
    print("\n".join([text.bold(head), *lines]))
    return 0
