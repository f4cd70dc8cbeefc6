"""The checkpoints of a run's folder: directories ``step-00000300/``, and the pointers ``last`` and ``best`` to them.

A pointer is a small file that contains a directory's name. A checkpoint counts once ``last`` points to it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from moekit.files import discard_partial, read_regular, replace_file, sync_directory

STEP = re.compile(r"step-(\d{8,})")
POINTERS = ("last", "best")
LONGEST_POINTER = 255  # bytes: that of a file's name


@dataclass(frozen=True)
class Retention:
    """Which pointers to set to a new checkpoint, and which older checkpoints to remove.

    Args:
        best: whether it is the best so far.
        keep: how many of the newest checkpoints to keep, in addition to the best.
        after: the step of the checkpoint before it. Others of later steps are left over from before the run was resumed
            from an older one, and are removed. None: they are kept.
    """

    best: bool = False
    keep: int = 1
    after: int | None = None

    def point(self, path: Path) -> None:
        """Sets the pointers to ``path``."""
        write_pointer(path.parent, "last", path.name)
        if self.best:
            write_pointer(path.parent, "best", path.name)

    def prune(self, path: Path) -> None:
        """Removes all checkpoints but ``path``, the newest before it, and the best.

        One that cannot be removed is left for the next save.
        """
        steps = steps_in(path.parent)
        after = step_of(path) if self.after is None else self.after
        before = [each for step, each in steps.items() if step <= after and each != path]
        kept = {path, target_of(path.parent, "best"), *before[max(len(before) - self.keep + 1, 0) :]}
        for step, each in steps.items():
            if each not in kept and (step <= after or self.after is not None):
                remove(each, strict=False)


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
        text = read_regular(folder / name, LONGEST_POINTER).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = folder / text
    return path if STEP.fullmatch(text) and path.is_dir() else None


def last_of(folder: Path) -> Path | None:
    """The newest checkpoint of a folder: the target of ``last``."""
    return target_of(folder, "last")


def recover(folder: Path) -> None:
    """Removes what a killed process left half-done, and puts a checkpoint back that it was about to replace.

    No checkpoint is removed, also none newer than ``last``: only a newer save may do that.

    Args:
        folder: of checkpoints; it need not exist.
    """
    for old in folder.glob(".tmp-old-*"):
        if not (path := folder / old.name.removeprefix(".tmp-old-")).exists():
            os.rename(old, path)
    for path in folder.glob(".tmp-*"):
        remove(path)
    discard_partial(folder)


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
            sync_directory(path.parent)  # first the name, then the files: also if power fails meanwhile
            path = doomed
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        if strict:
            raise
