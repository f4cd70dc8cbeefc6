"""Writing a checkpoint: whatever happens on the way, the last good one and its pointer stay as they are.

The stages, in order, each a function of this file that may be killed, or fail, at any point:

1. ``begin``: rank 0 clears the temporary directory beside the checkpoint's place; the ranks agree who writes what.
2. ``hold``: tensors are copied to the host's memory, where the rest is done by a thread while training goes on.
3. ``write``: each rank writes its file through to the disk, and its sum is taken on the way.
4. ``settle``: the ranks tell each other their sums, or what went wrong; if anything did, all give up together.
5. ``seal``: rank 0 writes the plain values and the manifest, and has the directory on the disk.
6. ``publish``: rank 0 moves the directory to its place, in one step.
7. ``point``: rank 0 replaces the pointers, each in one step; only now is the checkpoint there.
8. ``prune``: rank 0 removes checkpoints that are not to be kept.

What a kill leaves behind is removed by ``keeping.recover`` when a run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from moekit.checkpoints.background import Background
from moekit.checkpoints.manifest import Manifest, write_file
from moekit.checkpoints.pointers import Retention, last_of, remove, temporary
from moekit.checkpoints.process_group import Ranks, all_ranks
from moekit.checkpoints.safetensors_file import Digest, write_tensors
from moekit.checkpoints.tree import encode
from moekit.checkpoints.write_plan import Plan, make_plan
from moekit.errors import CheckpointError, SaveError
from moekit.files import sync_directory
from moekit.shards.shard import TensorShard

STATE = "state.json"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Save:
    """A checkpoint on its way.

    Args:
        path: its place.
        step: optimizer steps behind it; None where it is of no training run.
        plain: its plain values, for JSON.
        plan: who writes what.
        ranks: who takes part.
        keeping: what is to happen to pointers and older checkpoints; None for nothing.
    """

    path: Path
    step: int | None
    plain: Any
    plan: Plan
    ranks: Ranks
    keeping: Retention | None

    @property
    def beside(self) -> Path:
        """The directory that is filled before it is moved into place."""
        return temporary(self.path)


def save_tree(
    tree: Any,
    path: Path,
    *,
    step: int | None = None,
    keeping: Retention | None = None,
    behind: Background | None = None,
) -> None:
    """Saves a tree of plain values and tensors in a directory of its own.

    A tree that holds pieces (``Box``, ``DTensor``) is saved by all ranks at once, each calling this with a tree of the
    same form; its other values are those of rank 0. A tree without pieces is saved by the process that calls.

    Saving again over a directory that is there takes two moves, and a kill between them leaves none: give every
    checkpoint a name of its own.

    Args:
        tree: nested dicts, lists and tuples.
        path: the directory to be; it appears when it is whole.
        step: optimizer steps behind it.
        keeping: which pointers are to name it, and how many others stay.
        behind: writes while training goes on; returns as soon as everything is copied. None: returns when all is done.

    Raises:
        SaveError: it could not be written; on every rank the same. With ``behind``: an earlier one could not.
        CheckpointError: something in the tree that cannot be saved.
    """
    if behind is not None:
        behind.wait()
    save = begin(tree, path, step, keeping)
    if behind is None:
        finish(save)
    else:
        held = hold(save)
        behind.start(lambda: finish(held))


def begin(tree: Any, path: Path, step: int | None, keeping: Retention | None) -> Save:
    """Stage 1."""
    encoded = encode(tree)
    ranks = all_ranks() if encoded.pieces else Ranks()
    if ranks.rank == 0:
        remove(temporary(path))
    return Save(path, step, encoded.plain, make_plan(encoded.boxes, encoded.pieces, ranks), ranks, keeping)


def hold(save: Save) -> Save:
    """Stage 2. Copies to pinned memory where the tensors lie on a GPU, all at once."""
    boxes = save.plan.mine
    on_gpu = any(box.tensor.is_cuda for box in boxes.values())
    held = {name: _held(box) for name, box in boxes.items()}
    if on_gpu:
        torch.cuda.current_stream().synchronize()
    return replace(save, plan=replace(save.plan, mine=held))


def _held(box: TensorShard) -> TensorShard:
    copy = torch.empty(box.sizes, dtype=box.tensor.dtype, pin_memory=box.tensor.is_cuda)
    return replace(box, tensor=copy.copy_(box.tensor, non_blocking=True))


def finish(save: Save) -> None:
    """Stages 3 to 8. Every rank learns how it ended."""
    try:
        files, wrong = _attempt(lambda: write(save))
        all_files = settle(save, files or {}, wrong)
        if save.ranks.rank == 0:
            _, wrong = _attempt(lambda: _finish_alone(save, all_files))
        _give_up(save, save.ranks.gather(_words(wrong)), wrong)
    except BaseException:
        if save.ranks.rank == 0:
            remove(save.beside, strict=False)
        raise
    if save.keeping is not None and save.ranks.rank == 0:
        prune(save, save.keeping)


def _finish_alone(save: Save, files: dict[str, Digest]) -> None:
    seal(save, files)
    publish(save)
    if save.keeping is not None:
        try:
            point(save, save.keeping)
        except OSError:
            if last_of(save.path.parent) != save.path:
                remove(save.path, strict=False)  # a directory that no pointer names would only take up room
            raise


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What it returns, or why it failed, whatever that is: the other ranks wait to hear of it."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _words(error: Exception | None) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "" if error is None else f"{type(error).__name__}: {error}"


def _give_up(save: Save, said: list[str], cause: Exception | None) -> None:
    """Raises on every rank, if one of them says what is wrong."""
    for rank, wrong in enumerate(said):
        if wrong:
            who = f" (on rank {rank})" if save.ranks.world > 1 else ""
            last = last_of(save.path.parent)
            stands = "" if last is None else f"\n  the last good one is untouched: {last}"
            raise SaveError(f"could not save the checkpoint {save.path}: {wrong}{who}{stands}") from cause


def write(save: Save) -> dict[str, Digest]:
    """Stage 3: this rank's file, if anything is its to write."""
    save.beside.mkdir(parents=True, exist_ok=True)
    if not save.plan.mine:
        return {}
    tensors = {name: box.tensor for name, box in save.plan.mine.items()}
    return {save.plan.file: write_tensors(save.beside / save.plan.file, tensors, {"format": "pt"})}


def settle(save: Save, mine: dict[str, Digest], wrong: Exception | None) -> dict[str, Digest]:
    """Stage 4: the digests of all ranks' files.

    Raises:
        SaveError: a rank says what went wrong.
    """
    told = {"files": {name: [d.sha256, d.size] for name, d in mine.items()}, "wrong": _words(wrong)}
    heard = [json.loads(text) for text in save.ranks.gather(json.dumps(told))]
    _give_up(save, [each["wrong"] for each in heard], wrong)
    return {name: Digest(*digest) for each in heard for name, digest in each["files"].items()}


def seal(save: Save, files: dict[str, Digest]) -> None:
    """Stage 5."""
    state = json.dumps({"plain": save.plain, "tensors": save.plan.table}, allow_nan=False).encode()
    manifest = Manifest(save.step, {**files, STATE: write_file(save.beside / STATE, state)})
    try:
        manifest.check_sizes(save.beside)
    except CheckpointError as error:
        raise OSError(f"{error}\n  all ranks must write to one file system") from error
    manifest.write(save.beside)
    sync_directory(save.beside)


def publish(save: Save) -> None:
    """Stage 6."""
    old = temporary(save.path, "old")
    remove(old)
    if save.path.exists():
        os.rename(save.path, old)
    os.rename(save.beside, save.path)
    sync_directory(save.path.parent)
    remove(old)


def point(save: Save, keeping: Retention) -> None:
    """Stage 7."""
    keeping.point(save.path)


def prune(save: Save, keeping: Retention) -> None:
    """Stage 8."""
    keeping.prune(save.path)
