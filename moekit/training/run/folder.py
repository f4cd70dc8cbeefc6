"""The run folder: ``runs/<name>/<time>/`` with the spec, metrics, checkpoints and pictures of one run."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from moekit.checkpoints.files import steps_in, target_of
from moekit.checkpoints.reading import is_checkpoint
from moekit.errors import CheckpointError, MoekitError
from moekit.files import discard_partial, lock, make_directory, sync_directory
from moekit.registry import current
from moekit.spec.layers import head_of

RUNS: Path = Path("runs")
LOCK, SPEC = ".lock", "spec.yaml"
STARTED = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?")


@dataclass
class RunFolder:
    """The paths of a run's files. ``create`` makes the folder ``path``.

    Args:
        chosen: the checkpoint to use; None for the last.
        new_parents: parents that ``claim`` made, the innermost first.

    Attributes:
        name: the name for commands: the path.
        spec: the fully resolved recipe.
        hooks: the plugins whose life-cycle hooks the run called, as JSON; missing if there were none.
        metrics: training and validation metrics, one row per logged step.
        routing: a folder of routing statistics, if a callback writes any: ``moekit.tables``.
        summary: the run's results as JSON.
        imported: files that came with a model from elsewhere, such as its tokenizer's; an export takes them along.
        checkpoints: a directory for each checkpoint, by step; the pointers ``last`` and ``best`` name two of them.
    """

    path: Path
    chosen: Path | None = None
    new_parents: tuple[Path, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        self.name = self.path.as_posix()
        self.spec = self.path / SPEC
        self.hooks = self.path / "hooks.json"
        self.metrics = self.path / "metrics.csv"
        self.routing = self.path / "routing"
        self.summary = self.path / "summary.json"
        self.imported = self.path / "imported"
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def claim(cls, root: Path, name: str) -> RunFolder:
        """Makes a new folder, named by the current time. Runs that start at the same time get different ones.

        Its name sorts after those of earlier runs (``started``), also if the clock was set back meanwhile.
        """
        folder = root / name
        parents = tuple(parent for parent in (folder, *folder.parents) if not parent.exists())
        make_directory(folder)
        while True:
            latest = max((started(path) for path in folder.iterdir()), default=("", 0))
            stamp, again = max((time.strftime("%Y-%m-%d_%H-%M-%S"), 0), (latest[0], latest[1] + 1))
            path = folder / (f"{stamp}-{again}" if again else stamp)
            try:
                path.mkdir()
                sync_directory(folder)
                return cls(path, new_parents=parents)
            except FileExistsError:
                continue

    def release(self) -> None:
        """Removes a claimed folder, and the parents made for it, if nothing was written there."""
        if {path.name for path in self.path.iterdir()} <= {LOCK}:
            (self.path / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                for path in (self.path, *self.new_parents):
                    path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Keeps other processes from training in this folder. The system unlocks it when this process ends.

        A process that is forked from this one, such as a worker that loads data, does not hold the lock.

        Raises:
            MoekitError: another process trains in it; the message names its host and process number.
        """
        with (self.path / LOCK).open("a+", encoding="utf-8") as file:
            try:
                lock(file, wait=False)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read() or "another process"
                raise MoekitError(
                    f"{self.name} is in use: {owner} is training in it\n  wait for it, or stop it"
                ) from error
            with suppress(OSError):  # a full disk: the lock holds, but does not say whose it is
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield self

    @classmethod
    def find(cls, run: str, root: Path = RUNS) -> RunFolder:
        """The folder of ``run``: a run folder, a checkpoint in one, or a name, for its latest run with a checkpoint.

        Raises:
            CheckpointError: there is no such run, or ``run`` is another file of one.
        """
        path = Path(run)
        if (path / SPEC).is_file():
            return cls(path)
        if is_checkpoint(path) or path.is_file():
            inside = [parent for parent in path.parents if (parent / SPEC).is_file()]
            if inside and not is_checkpoint(path) and path.name != SPEC:
                raise _no_checkpoint(path, cls(inside[0]))
            if inside:
                return cls(inside[0], path if is_checkpoint(path) else None)
        for folder in (root / run, path) if run else ():  # '' would be the folder where the command runs
            runs = [spec.parent for spec in folder.glob("*/spec.yaml") if (spec.parent / "checkpoints").is_dir()]
            if runs:
                resumable = [run for run in runs if cls(run).last is not None] or runs
                return cls(max(resumable, key=lambda path: (started(path), path.name)))
        known = sorted(p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/*/spec.yaml"))
        offered = [recipe for recipe in current().recipes if recipe.name == run]
        trains = any(head_of(recipe, current()).trains for recipe in offered)
        make = f"\n  train one first: moekit train {run}" if trains else ""
        raise CheckpointError(
            f"no run at '{run}': neither a run folder, nor a checkpoint in one, nor the name of a run below {root}/\n"
            f"  runs there: {', '.join(dict.fromkeys(known)) or 'none'}{make}"
        )

    def create(self) -> None:
        """Makes the folder and the one for checkpoints; removes half-written files of a killed process."""
        make_directory(self.checkpoints)
        discard_partial(self.path)
        discard_partial(self.routing)

    @property
    def last(self) -> Path | None:
        """The newest checkpoint; None without one."""
        return target_of(self.checkpoints, "last")

    @property
    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss; None without one."""
        return target_of(self.checkpoints, "best")

    def checkpoint(self) -> Path:
        """The checkpoint to read or to resume: the chosen one, or the last.

        Raises:
            CheckpointError: there is none.
        """
        path = self.last if self.chosen is None else target_of(self.chosen.parent, self.chosen.name) or self.chosen
        if path is None:
            others = "".join(f"\n    {other}" for other in steps_in(self.checkpoints).values())
            why = f"'last' names none; there are:{others}"
            if not others:
                why = f"a run writes its first after its first validation; start again: moekit train {self.spec}"
                if pickled := sorted(path.name for path in self.checkpoints.glob("*.ckpt")):
                    why += f"\n  {', '.join(pickled)}: no run is resumed from a .ckpt file"
            raise CheckpointError(f"no checkpoint in {self.checkpoints}\n  {why}")
        return path

    @property
    def dense(self) -> RunFolder:
        """The folder of this run's dense baseline."""
        return RunFolder(self.path / "dense")

    @property
    def dense_as_long(self) -> RunFolder:
        """The folder of the dense baseline that trained for as long as this run."""
        return RunFolder(self.path / "dense_as_long")

    @property
    def main(self) -> RunFolder:
        """The folder of the run that a dense baseline belongs to; for any other run its own."""
        outer = RunFolder(self.path.parent)
        return outer if self.path in (outer.dense.path, outer.dense_as_long.path) and outer.spec.is_file() else self


def started(path: Path) -> tuple[str, int]:
    """When a run was started, by its folder's name: the time, and a number among runs of that time; or ("", 0)."""
    match = STARTED.fullmatch(path.name)
    return (match[1], int(match[2] or 0)) if match else ("", 0)


def _no_checkpoint(path: Path, run: RunFolder) -> CheckpointError:
    there = "".join(f"\n    {checkpoint}" for checkpoint in steps_in(run.checkpoints).values()) or " none"
    return CheckpointError(
        f"{path} is a file of a run, but not a checkpoint\n"
        f"  expected the run, for its last checkpoint: {run.name}\n"
        f"  or one of its checkpoints:{there}"
    )


def check_run_name(name: str) -> None:
    """Rejects a name whose folder would not be inside the folder of all runs. ``a/b`` is allowed.

    Raises:
        MoekitError: saying what was expected.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not name.strip() or not path.parts or "\0" in name:
        raise MoekitError(
            f"invalid run name {name!r}: it names no folder inside the folder of all runs\n"
            "  expected --name NAME: such as trial, or trials/first; --out DIR: the folder for all runs"
        )


def check_writable(path: Path) -> None:
    """Rejects a folder that cannot be written to, existing or not; tries with a temporary directory.

    Raises:
        MoekitError: saying why.
    """
    parent = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".moekit-", dir=parent):
            pass
    except OSError as error:
        message = (
            f"cannot write a run to {path}: {parent}: {error.strerror}\n  expected --out DIR: a folder for all runs"
        )
        raise MoekitError(message) from error


def checkpoint_of(run: str, root: Path = RUNS) -> Path:
    """The checkpoint of ``run``: itself (also a ``.ckpt`` file), or the last of a run folder or of a name's latest run.

    Raises:
        CheckpointError: there is no such run, or it has no checkpoint.
    """
    path = Path(run)
    if path.suffix == ".ckpt" and path.exists():
        return path
    if is_checkpoint(path):
        return target_of(path.parent, path.name) or path
    return RunFolder.find(run, root).checkpoint()
