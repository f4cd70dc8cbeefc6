"""Which checkpoints of a folder stay, and which of them is meant: ``step-00000300/`` by ``last`` and ``best``.

A pointer is a small file that holds a directory's name. A checkpoint is there when ``last`` names it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STEP = re.compile(r"step-(\d{8,})")
POINTERS = ("last", "best")
LONGEST_POINTER = 255  # bytes: that of a file's name


@dataclass(frozen=True)
class Retention:
    """What is to happen when a checkpoint stands.

    Args:
        best: it is the best so far.
        keep: how many of the newest stay, besides the best.
    """

    best: bool = False
    keep: int = 1

    def point(self, path: Path) -> None:
        """Has the pointers name ``path``."""
        write_pointer(path.parent, "last", path.name)
        if self.best:  # after ``last``: whatever a pointer names must not be newer than what ``last`` names
            write_pointer(path.parent, "best", path.name)

    def prune(self, path: Path) -> None:
        """Removes all but the newest and the best. Later steps are those of a run that was gone back on."""
        steps = steps_in(path.parent)
        newest = [each for step, each in steps.items() if step <= step_of(path)][-self.keep :]
        stay = {*newest, path, target_of(path.parent, "best")}
        for each in steps.values():
            if each not in stay:
                remove(each)


def step_name(step: int) -> str:
    """The name of the directory of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a directory's name says; -1 for any other name."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, in order, whole or not."""
    if not folder.is_dir():
        return {}
    found = {step: path for path in folder.iterdir() if (step := step_of(path)) >= 0 and path.is_dir()}
    return dict(sorted(found.items()))


def write_pointer(folder: Path, name: str, target: str) -> None:
    """Has a pointer name a directory beside it, in one step."""
    replace_file(folder / name, lambda path: path.write_text(target + "\n", encoding="utf-8"))


def target_of(folder: Path, name: str) -> Path | None:
    """The directory that a pointer names; None where there is no pointer, or nothing at its end."""
    try:
        text = (folder / name).read_bytes()[: LONGEST_POINTER + 1].decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / text
    return path if STEP.fullmatch(text) and path.is_dir() else None


def last_of(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    return target_of(folder, "last")


def recover(folder: Path, resumed_from: Path | None = None) -> None:
    """Clears away what a killed process left: directories half written, and those that no pointer came to name.

    Where ``last`` names nothing, no checkpoint is touched: they may be all that there is.

    Args:
        folder: of checkpoints; it need not exist.
        going_on_from: is left alone whatever its step.
    """
    if not folder.is_dir():
        return
    for path in (*folder.glob(".tmp-*"), *folder.glob(".*.tmp")):
        remove(path)
    last, kept = last_of(folder), resumed_from and resumed_from.resolve()
    if last is not None:
        for step, path in steps_in(folder).items():
            if step > step_of(last) and path.resolve() != kept:
                remove(path)


def temporary(path: Path, what: str = "new") -> Path:
    """A place beside ``path`` that ``recover`` clears."""
    return path.with_name(f".tmp-{what}-{path.name}")


def remove(path: Path, *, strict: bool = True) -> None:
    """Removes a directory or file, so that a kill half-way leaves nothing that looks like a checkpoint.

    Args:
        path: what; it need not exist.
        strict: False: without complaint where it cannot be.
    """
    try:
        if path.is_dir() and not path.name.startswith(".tmp-"):
            doomed = temporary(path, "removed")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)
            path = doomed
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        if strict:
            raise


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file beside ``path``, then moves it to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write that fails does not say where
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Has the names in a directory on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
