"""Runs one verb: imports its module, parses its arguments, calls it."""

from __future__ import annotations

import argparse
import gc
import importlib
import re
from typing import NoReturn, Protocol, cast

from moekit.cli.core import VERBS
from moekit.errors import MoekitError, nearest

QUICK = ("ls", "show", "plugins", "config")
"""Verbs that end before garbage collection is worth its time. They import no torch."""


class Verb(Protocol):
    """The interface of a verb's module."""

    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work and returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``MoekitError``, with the nearest option or choice."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting.

        Raises:
            MoekitError: always, with the mistake, the nearest option or choice, and the usage.
        """
        wrong, choices = re.search(r"unrecognized .*?(--\S+)", message), list(self._option_string_actions)
        if wrong is None and (wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)):
            choices = re.findall(r"[\w-]+", wrong[2])
        near = nearest(wrong[1], choices) if wrong else ""
        lines = [f"{self.prog}: {message}", *([f"  did you mean '{near}'?"] if near else [])]
        lines += ["  " + " ".join(self.format_usage().split()), f"  more: {self.prog} --help"]
        raise MoekitError("\n".join(lines))


def load(name: str) -> Verb:
    """The module of a verb, imported.

    Raises:
        MoekitError: there is no such verb.
    """
    if name not in VERBS:
        what = f"unknown {'option' if name.startswith('-') else 'verb'} '{name}' (verbs: {', '.join(VERBS)})"
        near = nearest(name, [*VERBS, "--help", "--version"])
        raise MoekitError("\n".join([what, *([f"  did you mean '{near}'?"] if near else []), "  more: moekit --help"]))
    return cast(Verb, importlib.import_module(f"moekit.cli.{name}"))


def parser_of(name: str) -> Parser:
    """The argument parser of a verb, with its summary above and its examples below."""
    verb = load(name)
    parser = Parser(
        prog=f"moekit {name}",
        description=f"{verb.SUMMARY[:1].upper()}{verb.SUMMARY[1:]}.",
        epilog=f"examples:\n{verb.EXAMPLES.rstrip()}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    return parser


def run(name: str, argv: list[str]) -> int:
    """Runs a verb and returns its exit code.

    Raises:
        MoekitError: the user's mistake.
    """
    parser = parser_of(name)
    try:
        args = parser.parse_intermixed_args(argv)  # options may be between overrides
    except SystemExit as stop:  # --help printed its page
        return int(stop.code or 0)
    if name not in QUICK:
        gc.enable()  # disabled in moekit.cli
    return load(name).run(args)
