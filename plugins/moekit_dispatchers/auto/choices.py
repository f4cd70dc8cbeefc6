"""Times of dispatchers, measured once: kept in memory, in a file of the user, and in the folder of a run.

The user's file is ``dispatchers.json`` in ``files.cache_folder()``. Its times hold for the versions and the machine in
whose section they are. A run's file holds what the run used, so that it resumes with the same choices wherever it
resumes, and thus with the same bits. A file that cannot be read or written is ignored: then the times are measured
again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moekit.files import cache_folder, read_regular, replace_text

Times = Mapping[str, float]
"""Milliseconds of each dispatcher that was timed, by its name."""

LARGEST = 1 << 22
"""Bytes of a file beyond which it is ignored, and begun again."""


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        name: of the dispatcher.
        reason: in words.
        whole: whether it is ``textbook`` in one function (``textbook.module.run_whole``).
    """

    name: str
    reason: str
    whole: bool = False


class Choices:
    """Times by machine and size. The first measurement counts, also of several processes that measure at once.

    Args:
        user: the user's file; None for none.

    Attributes:
        chosen: what followed from times, by all that a choice depends on: a call looks it up in microseconds.
    """

    def __init__(self, user: Path | None) -> None:
        self.user = user
        self.run: Path | None = None
        self.known: dict[str, dict[str, Times]] = {}
        self.chosen: dict[Hashable, Choice] = {}

    def follow(self, run: Path | None) -> None:
        """From now on takes times from this file of a run first, and adds what is used to it. None for no run."""
        self.run, self.known, self.chosen = run, {}, {}

    def get(self, machine: str, size: str) -> Times | None:
        """The times of a size on a machine; None if they have not been measured."""
        if (found := self.known.get(machine, {}).get(size)) is not None:
            return found
        for file in (self.run, self.user):
            if (found := read(file).get(machine, {}).get(size)) is not None:
                return self._used(machine, size, found)
        return None

    def put(self, machine: str, size: str, times: Times) -> Times:
        """Keeps what was measured, and returns the times that count: those of a process that was faster, if any."""
        found = add(self.user, machine, size, times)
        return self._used(machine, size, found)

    def _used(self, machine: str, size: str, times: Times) -> Times:
        times = add(self.run, machine, size, times)
        self.known.setdefault(machine, {})[size] = times
        return times


def user_file() -> Path | None:
    """The user's file; None without a home."""
    try:
        return cache_folder() / "dispatchers.json"
    except RuntimeError:  # there is no home
        return None


def read(file: Path | None) -> dict[str, dict[str, Times]]:
    """The times in a file by machine and size; none where it is missing or damaged."""
    if file is None:
        return {}
    try:
        data = json.loads(read_regular(file, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    machines = data.items() if isinstance(data, dict) else ()
    return {
        str(machine): {size: times for size, times in sizes.items() if valid(times)}
        for machine, sizes in machines
        if isinstance(sizes, dict)
    }


def valid(times: Any) -> bool:
    """Whether these are times of at least one dispatcher."""
    return (
        isinstance(times, dict)
        and bool(times)
        and all(isinstance(t, float | int) and not isinstance(t, bool) and math.isfinite(t) for t in times.values())
    )


def add(file: Path | None, machine: str, size: str, times: Times) -> Times:
    """Adds times to a file unless it has some of this size; returns those in it, or these if it cannot be written."""
    if file is None:
        return times
    data = read(file)
    sizes = data.setdefault(machine, {})
    if size in sizes:
        return sizes[size]
    sizes[size] = times
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(data, indent=1, sort_keys=True) + "\n")
    except OSError:
        pass
    return times


CHOICES = Choices(user_file())
"""Of this process."""
