"""``moekit new``: write the package of a plugin, complete and working, to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from moekit.registry import current
from moekit_testing.scaffold import package, templates, write

EXAMPLES = """\
  moekit new router my_router                 a package in moekit-my-router/, with one router that works
  moekit new callback my_callback --to here   in the folder 'here'
  moekit new verb my_verb                     a plugin that adds a verb
  moekit new --list                           what can be made

The package has options, code, a reference implementation, tests, a recipe, a licence and a file for CI; it passes its
own tests, ruff and mypy --strict as written. A plugin offers templates of its own kinds in its folder templates/KIND.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help="what it offers: see --list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of what it offers: lower case, with underscores")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to write it (default: moekit-NAME)")
    parser.add_argument("--list", action="store_true", help="list what can be made")


def run(args: argparse.Namespace) -> int:
    """Writes the package, and prints its files and what to do next.

    Raises:
        MoekitError: the kind, the name or the folder cannot be used.
    """
    registry = current()
    if args.list:
        print("\n".join(templates(registry)))
        return 0
    made = package(registry, args.kind or "", args.name or "", args.to)
    paths = write(made, registry)
    print(f"{made.folder}/")
    print("\n".join(f"  {path}" for path in paths))
    used = [f"moekit check --plugin {made.name}", f"moekit train {made.name} trainer.max_steps=2"]
    commands = [f"cd {made.folder}", "pip install -e '.[test]'", "pytest"]
    commands += used if made.kind in registry.kinds else [f"moekit help {made.name}"]
    print("\nnext:\n" + "\n".join(f"  {command}" for command in commands))
    return 0
