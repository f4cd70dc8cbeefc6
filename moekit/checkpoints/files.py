"""The checkpoints of a run's folder: directories ``step-00000300/``, and the pointers ``last`` and ``best`` to them.

A pointer is a small file that contains a directory's name. A checkpoint counts once ``last`` points to it.
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
    """Which pointers to set to a new checkpoint, and which older checkpoints to remove.

    Args:
        best: whether it is the best so far.
        keep: how many of the newest checkpoints to keep, in addition to the best.
    """

    best: bool = False
    keep: int = 1

    def point(self, path: Path) -> None:
        """Sets the pointers to ``path``."""
        write_pointer(path.parent, "last", path.name)
        if self.best:  # after ``last``, since ``recover`` removes checkpoints newer than ``last``
            write_pointer(path.parent, "best", path.name)

    def prune(self, path: Path) -> None:
        """Removes all checkpoints but the newest and the best, and those of later steps than ``path``.

        Later steps are left over from before the run was resumed from an older checkpoint.
        """
        steps = steps_in(path.parent)
        newest = [each for step, each in steps.items() if step <= step_of(path)][-self.keep :]
        kept = {*newest, path, target_of(path.parent, "best")}
        for each in steps.values():
            if each not in kept:
                remove(each)


def step_name(step: int) -> str:
    """The name of a step's directory."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a directory's name; -1 for any other name."""
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, in ascending order, intact or not."""
    if not folder.is_dir():
        return {}
    found = {step: path for path in folder.iterdir() if (step := step_of(path)) >= 0 and path.is_dir()}
    return dict(sorted(found.items()))


def write_pointer(folder: Path, name: str, target: str) -> None:
    """Sets a pointer to a directory of the same folder, atomically."""
    replace_file(folder / name, lambda path: path.write_text(target + "\n", encoding="utf-8"))


def target_of(folder: Path, name: str) -> Path | None:
    """The directory that a pointer points to; None if there is no pointer or no such directory."""
    try:
        text = (folder / name).read_bytes()[: LONGEST_POINTER + 1].decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / text
    return path if STEP.fullmatch(text) and path.is_dir() else None


def last_of(folder: Path) -> Path | None:
    """The newest checkpoint of a folder: the target of ``last``."""
    return target_of(folder, "last")


def recover(folder: Path, resumed_from: Path | None = None) -> None:
    """Removes what a killed process left: temporary files, and checkpoints newer than ``last``.

    Without a valid ``last`` no checkpoint is removed: there may be no other.

    Args:
        folder: of checkpoints; it need not exist.
        resumed_from: a checkpoint to keep, whatever its step.
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
    """A temporary path in the same folder as ``path``, which ``recover`` removes."""
    return path.with_name(f".tmp-{what}-{path.name}")


def remove(path: Path, *, strict: bool = True) -> None:
    """Removes a directory or file, if it exists. A kill halfway leaves nothing that looks like a checkpoint.

    Raises:
        OSError: it cannot be removed; ignored unless ``strict``.
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
    """Has ``write`` fill a temporary file, flushes it, and moves it to ``path`` atomically.

    Raises:
        OSError: the disk is full, or the like; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not name its file
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
