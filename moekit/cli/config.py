"""``moekit config``: print or validate specs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from moekit.cli import text
from moekit.cli.verbs import actions_of
from moekit.errors import MoekitError, Problem, UnknownName, nearest

ACTIONS = ("print", "validate")
EXAMPLES = """\
  moekit config print deepseek_v3                                  every option, resolved
  moekit config print deepseek_v3 model.depth=8 --only model.moe   a part of it, with one option changed
  moekit config validate mine.yaml                                 all its mistakes in one report
  moekit config validate mine.yaml --deep                          also of classes of other libraries
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("action", metavar="|".join(_actions()), help="what to do")
    parser.add_argument("sources", nargs="*", metavar="NAME|key=value", help="recipes or YAML files, and overrides")
    parser.add_argument("--only", metavar="PATH", help="print: only the part at this path, such as model.moe")
    parser.add_argument(
        "--deep", action="store_true", help="validate: also import the classes that the trainer's parts name by 'class'"
    )
    parser.add_argument("--json", action="store_true", help="print: JSON instead of YAML")


def run(args: argparse.Namespace) -> int:
    """Runs one action.

    Raises:
        MoekitError: the action is unknown, there are too few or too many names, or a spec has mistakes.
    """
    names, overrides = split(args.sources)
    command = f"config {args.action}"
    match args.action:
        case "print":
            name, _ = one_name(command, args.sources)
            return _print(name, overrides, only=args.only, as_json=args.json)
        case "validate":
            expect(bool(names), command, names, "one name or more")
            return _validate(names, overrides, deep=args.deep)
    what = f"unknown action '{args.action}' (actions: {', '.join(_actions())})"
    raise UnknownName(Problem(what=what, nearest=nearest(args.action, _actions()), list_with="moekit config --help"))


def _actions() -> list[str]:
    return [*ACTIONS, *actions_of("config")]


def split(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and overrides; an override has a ``=``."""
    return [s for s in sources if "=" not in s], [s for s in sources if "=" in s]


def one_name(command: str, sources: Sequence[str]) -> tuple[str, list[str]]:
    """The only name, and the overrides.

    Raises:
        MoekitError: there are several names, or none.
    """
    names, overrides = split(sources)
    expect(len(names) == 1, command, names, "one name, then key=value")
    return names[0], overrides


def expect(holds: bool, command: str, names: list[str], what: str) -> None:
    """Checks the names that a command got.

    Raises:
        MoekitError: ``holds`` is false: they are not ``what`` the command takes.
    """
    if not holds:
        raise MoekitError(
            f"moekit {command}: expected {what}, got {', '.join(names) or 'none'}\n"
            f"  more: moekit {command.split()[0]} --help"
        )


def _print(name: str, overrides: list[str], *, only: str | None, as_json: bool) -> int:
    from moekit.spec import dump, load, to_plain

    spec = load(name, overrides)
    if only is None and not as_json:
        sys.stdout.write(dump(spec))
        return 0
    plain: Any = to_plain(spec)
    for depth, key in enumerate(only.split(".") if only else ()):
        if not isinstance(plain, dict) or key not in plain:
            keys = list(plain) if isinstance(plain, dict) else []
            here = ".".join((only or "").split(".")[:depth]) or "the spec"
            what = f"no value at '{only}': {here} has no '{key}' (it has: {', '.join(keys) or 'nothing'})"
            raise UnknownName(Problem(what=what, nearest=nearest(key, keys)))
        plain = plain[key]
    if as_json:
        text.print_json(plain)
    else:
        from moekit.spec.tree import write

        sys.stdout.write(write(plain))
    return 0


def _validate(names: list[str], overrides: list[str], *, deep: bool) -> int:
    from moekit.spec import load

    wrong = 0
    for name in names:
        try:
            recipe = load(name, overrides)
            if deep:
                from moekit.training.run.parts import check_parts

                check_parts(recipe)
        except MoekitError as error:
            if len(names) == 1:
                raise
            wrong += 1
            print(f"error: {name}: {error}\n", file=sys.stderr)
        else:
            print(f"{name}: valid")
    return 2 if wrong else 0
