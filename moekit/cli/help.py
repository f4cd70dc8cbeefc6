"""``moekit help``: list every verb, moekit's own and those of plugins, or print the help page of one."""

from __future__ import annotations

import argparse
import sys

from moekit.cli import text
from moekit.cli.core import VERBS
from moekit.cli.verbs import find, parser_of, typed
from moekit.discovery import BUILTIN
from moekit.registry import current

EXAMPLES = """\
  moekit help              every verb
  moekit help train        as moekit train --help
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("verb", nargs="?", help="the verb to explain")


def run(args: argparse.Namespace) -> int:
    """Prints the verbs with their summaries, or the page of one.

    Raises:
        MoekitError: there is no such verb, or it cannot be used.
    """
    if args.verb:
        sys.stdout.write(parser_of(find(args.verb)).format_help())
        return 0
    registry = current()
    others = [verb for verb in registry.verbs if verb.plugin != BUILTIN]
    rows = [(typed(verb), verb.summary, registry.origin(verb)) for verb in others]
    tables = {"verbs": [(name, summary, "") for name, summary in VERBS.items()], "verbs of plugins": rows}
    sizes = text.columns([row for some in tables.values() for row in some])
    blocks = [[text.bold(title), *text.table(some, fold=(1,), sizes=sizes)] for title, some in tables.items() if some]
    print("\n\n".join("\n".join(block) for block in blocks))
    text.note_failed(registry)
    return 0
