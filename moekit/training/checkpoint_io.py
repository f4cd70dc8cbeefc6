"""Checkpoints of training runs: what Lightning saves, in the format of ``moekit.checkpoints``."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from moekit.checkpoints.background import Background
from moekit.checkpoints.pointers import Retention, remove
from moekit.checkpoints.reading import Checkpoint, Handle, open_checkpoint
from moekit.checkpoints.tree import fill
from moekit.checkpoints.writing import save_tree
from moekit.compat import loop_counters
from moekit.errors import CheckpointError
from moekit.parallel.launch import RANK_ZERO_TIMEOUT, decide_on_rank_zero

SLOWEST = 100e6  # bytes/s that are read of a checkpoint, at the least, while other processes wait


class AtomicCheckpointIO(CheckpointIO):
    """A Lightning checkpoint plugin: ``Trainer(plugins=[AtomicCheckpointIO()])``. Local directories only.

    Args:
        asynchronous: write while training goes on. What goes wrong is raised by the next save, or at the end.
        opened: the checkpoint that is gone on from: of its files, those that were compared are not compared again.
    """

    def __init__(self, *, asynchronous: bool = False, opened: Checkpoint | None = None) -> None:
        self._opened = opened
        self._behind = Background() if asynchronous else None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Retention | None = None
    ) -> None:
        """Saves a directory, which appears when it is whole.

        Args:
            checkpoint: plain values and tensors.
            path: of the directory.
            storage_options: which pointers are to name it, and how many others stay.

        Raises:
            SaveError: it could not be written; asynchronously: the one before.
        """
        self._opened = None  # which may be saved over, or removed as one too many
        step = checkpoint.get("global_step")
        save_tree(checkpoint, Path(path), step=step, keeping=storage_options, behind=self._behind)

    def open(self, path: str | os.PathLike[str]) -> Checkpoint:
        """A checkpoint: the one that is open already, until something is saved, or one that is opened now.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        if self._opened is not None and self._opened.path.resolve() == Path(path).resolve():
            return self._opened
        return open_checkpoint(Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """All of a checkpoint, on the CPU: it holds plain values and tensors, whatever ``weights_only`` asks for.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        contents: dict[str, Any] = self.open(path).whole()
        return contents

    def load_handles(self, path: str | os.PathLike[str], names: Collection[str]) -> dict[str, Any]:
        """The tree of a checkpoint; below the keys ``names`` each tensor is a ``Handle``, which reads slices.

        Raises:
            CheckpointError: it is missing, damaged or no checkpoint.
        """
        plain: dict[str, Any] = self.open(path).plain
        return {key: value if key in names else fill(value, Handle.whole, Handle) for key, value in plain.items()}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a directory."""
        remove(Path(path))

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            SaveError: what was, could not be.
        """
        if self._behind is not None:
            self._behind.wait()

    def teardown(self) -> None:
        """The same, at the end."""
        self.wait()


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint that ``LitMoE`` wrote.

    Raises:
        CheckpointError: it is missing, damaged, or no checkpoint of a training run.
    """
    checkpoint = open_checkpoint(path)
    plain = checkpoint.plain
    if not isinstance(plain, dict) or "moekit" not in plain or "spec" not in plain.get("hyper_parameters", {}):
        raise CheckpointError(
            f"{checkpoint.path} is no checkpoint of a moekit run (no 'moekit' part, or no spec in it)"
        )
    return checkpoint


def verify_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Has the first process of a run compare every byte of what it goes on from; the others wait for its word.

    They compare the files that they read, when they read them: a sum taken by each would read all of it once a process.

    Raises:
        CheckpointError: naming the first file that is damaged.
        MoekitError: the same, in the other processes.
    """

    def compare() -> str:
        for checkpoint in checkpoints:
            checkpoint.verify()
        return "whole"

    size = sum(digest.size for checkpoint in checkpoints for digest in checkpoint.manifest.files.values())
    if checkpoints:
        decide_on_rank_zero("checkpoint", compare, timeout=RANK_ZERO_TIMEOUT + timedelta(seconds=size / SLOWEST))


def check_same_model(path: Path, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another model.

    Args:
        path: the checkpoint, for the message.
        saved: the plain spec in it.
        spec: the plain spec to go on with.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    found = [
        (f"{part}.{key}" if key else part, was, now)
        for part in ("model", "objective")
        for key, was, now in differences(saved.get(part), spec.get(part))
    ]
    for part, key in (("optimizer", "use"), ("start", "update")):  # what the optimizer's state is of
        was, now = ((tree.get(part) or {}).get(key) for tree in (saved, spec))
        if was != now:
            found.append((f"{part}.{key}", was, now))
    if found:
        lines = [f"  {key}: {was!r} in the checkpoint, {now!r} now" for key, was, now in found[:5]]
        raise CheckpointError(f"{path} cannot go on: it holds another model\n" + "\n".join(lines))


def differences(a: Any, b: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two plain trees differ: (path, value in ``a``, value in ``b``)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))]
    return [] if a == b else [(at, a, b)]


def recount(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Has the loops of a checkpoint count in micro-batches of ``accumulate`` a step, in place.

    Four ranks with one micro-batch each see in a step what one process sees in four.

    Args:
        checkpoint: of Lightning, with a ``moekit`` part that says how many there were.
        accumulate: micro-batches in a step, of one rank, from now on.

    Raises:
        CheckpointError: it was saved within a step.
    """
    was = int(checkpoint["moekit"]["accumulate"])
    if was == accumulate:
        return
    for counters in loop_counters(checkpoint):
        for key, count in counters.items():
            steps, rest = divmod(count, was)
            if rest:
                raise CheckpointError(
                    f"it was saved within a step of {was} micro-batches, and cannot go on with {accumulate}\n"
                    f"  trainer.accumulate_grad_batches={was} goes on with it"
                )
            counters[key] = steps * accumulate
