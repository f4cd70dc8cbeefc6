"""Errors that a user can act on: what, where, what was expected, the nearest valid name, how to list the choices.

Each is a ``ValueError``; the command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class MoekitError(ValueError):
    """A mistake in the user's input: a name, a value, a file. Never a bug in moekit."""


class DataError(MoekitError):
    """Data that cannot be used: an unreadable, empty or malformed file. The message names it."""


class CheckpointError(MoekitError):
    """A checkpoint or run folder that cannot be used: missing, truncated, or written with another spec."""


class SaveError(CheckpointError):
    """A checkpoint that could not be written, as on a full disk. Earlier checkpoints are intact."""


class PluginError(MoekitError):
    """A plugin that cannot be used: it fails to import, breaks a rule of the hooks, or states another API version."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One mistake, printed in a few lines.

    Args:
        what: the mistake, with the value that was found.
        at: the path in the spec, such as ``model.moe.router.use``.
        source: the file and line, or ``command line``.
        expected: what is valid there.
        nearest: the nearest valid name.
        list_with: the command that lists the choices.
        notes: possible causes, one line each.
    """

    what: str
    at: str = ""
    source: str = ""
    expected: str = ""
    nearest: str = ""
    list_with: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = (self.at and f"at {self.at}", self.source and f"in {self.source}")
        lines = [
            "  ".join(filter(None, where)),
            self.expected and f"expected {self.expected}",
            self.nearest and f"did you mean '{self.nearest}'?",
            self.list_with and f"list them: {self.list_with}",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n  ".join([self.what, *filter(None, lines)])


class SpecError(MoekitError):
    """Every mistake of a spec, in one report.

    Attributes:
        problems: the mistakes, in the order of the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        head = f"{len(self.problems)} problems\n\n" if len(self.problems) > 1 else ""
        super().__init__(head + "\n\n".join(str(p) for p in self.problems))


class UnknownName(MoekitError):
    """A name that no component or kind has. ``problem`` has the parts of the message."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


def nearest(name: str, choices: Sequence[str]) -> str:
    """The choice most similar to ``name``; ``""`` if none is similar."""
    from difflib import get_close_matches  # needed for errors alone: keeps start-up fast

    found = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return found[0] if found else ""
