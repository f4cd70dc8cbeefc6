"""Finds one verb, moekit's own or a plugin's, imports its module, parses its arguments, and runs it."""

from __future__ import annotations

import argparse
import gc
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol, cast

from moekit.cli.core import VERBS
from moekit.component import Verb
from moekit.errors import MoekitError, PluginError, nearest
from moekit.registry import current

QUICK = ("ls", "show", "plugins", "config", "help")
"""Verbs that end before garbage collection is worth its time. They import no torch."""

EXIT_CODES = """\
exit codes:
  0    done
  1    what this verb checks is wrong, if it checks something; or a bug, with its traceback
  2    a mistake in the arguments, a recipe or a file (MOEKIT_DEBUG=1 prints its traceback)
  130  Ctrl-C
  141  the reader of the output has gone
"""
"""The end of every verb's page."""


class VerbModule(Protocol):
    """The interface of a verb's module."""

    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Does the work and returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``MoekitError``, with the nearest option or choice."""

    @property
    def arguments(self) -> Sequence[argparse.Action]:
        """Its arguments and options, in order of declaration."""
        return self._actions

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


def find(name: str) -> Verb:
    """The verb of a name: moekit's own, or a plugin's; ``plugin/name`` chooses where two plugins offer it.

    Raises:
        MoekitError: there is no such verb, or two plugins offer it.
    """
    if name in VERBS:  # without looking for plugins
        return Verb(name=name, target=f"moekit.cli.{name}", summary=VERBS[name])
    if name.startswith("-"):
        near = nearest(name, ["--help", "--version"])
        hint = [f"  did you mean '{near}'?"] if near else []
        raise MoekitError("\n".join([f"unknown option '{name}' (options: --help, --version)", *hint]))
    return current().verb(name)


def actions_of(name: str) -> list[str]:
    """The actions that plugins add to a verb: ``moekit config schema`` calls a plugin's verb ``config.schema``."""
    return [verb.name.partition(".")[2] for verb in current().verbs if verb.name.startswith(f"{name}.")]


def module_of(verb: Verb) -> VerbModule:
    """The module of a verb, imported.

    Raises:
        PluginError: it cannot be imported, or lacks something.
    """
    here = str(verb)
    try:
        module = importlib.import_module(verb.target)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{here}: cannot import '{verb.target}'\n  {type(error).__name__}: {error}") from error
    lacking = [name for name in ("EXAMPLES", "add_arguments", "run") if not hasattr(module, name)]
    if lacking:
        needed = "EXAMPLES, add_arguments(parser) and run(args)"
        raise PluginError(f"{here}: '{verb.target}' has no {', '.join(lacking)}\n  expected {needed}")
    return cast(VerbModule, module)


def typed(verb: Verb) -> str:
    """What a user types after ``moekit``."""
    return current().short_name(verb).replace(".", " ") if verb.plugin else verb.name


def parser_of(verb: Verb) -> Parser:
    """The argument parser of a verb, with its summary above, its examples and the exit codes below.

    Raises:
        PluginError: the verb's module cannot be used.
    """
    module = module_of(verb)
    parser = Parser(
        prog=f"moekit {typed(verb)}",
        description=f"{verb.summary[:1].upper()}{verb.summary[1:]}.",
        epilog=f"examples:\n{module.EXAMPLES.rstrip()}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    with _named(verb):
        module.add_arguments(parser)
    return parser


def run(name: str, argv: list[str]) -> int:
    """Runs a verb and returns its exit code.

    Raises:
        MoekitError: the user's mistake.
        Exception: any other exception of a plugin's verb, with a note that names the verb and its plugin.
    """
    verb = find(name)
    parser = parser_of(verb)
    flags = {flag for flag, action in parser._option_string_actions.items() if action.nargs == 0}
    at = next((i for i, each in enumerate(argv) if each not in flags), None)
    if at is not None and argv[at] in actions_of(name):
        return run(f"{name}.{argv[at]}", [*argv[:at], *argv[at + 1 :]])
    try:
        args = parser.parse_intermixed_args(argv)  # options may be between overrides
    except SystemExit as stop:  # --help printed its page
        return int(stop.code or 0)
    if name not in QUICK:
        gc.enable()  # disabled in moekit.cli
    with _named(verb):
        return module_of(verb).run(args)


@contextmanager
def _named(verb: Verb) -> Iterator[None]:
    """Adds a note to an exception of a plugin's verb, unless it is the user's mistake."""
    try:
        yield
    except Exception as error:
        if verb.plugin and not isinstance(error, MoekitError):
            error.add_note(f"while running {verb} ({current().origin(verb)})")
        raise
