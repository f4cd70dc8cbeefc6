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
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from moekit.checkpoints.files import Retention, last_of, remove, sync_directory, temporary
from moekit.checkpoints.format import Manifest, encode, write_file
from moekit.checkpoints.safetensors_file import NAMES, Digest, write_tensors
from moekit.compat import timeout_of
from moekit.errors import CheckpointError, SaveError
from moekit.shards.shard import Dims, TensorShard, tiling_error


class Background:
    """At most one piece of work is under way. What went wrong in it is raised when it is waited for.

    The thread is no daemon: a process that ends in good order lets it finish.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._wrong: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins; waits for what is under way first.

        Raises:
            Exception: that of the earlier piece of work.
        """
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._wrong = error

    def wait(self) -> None:
        """Returns when nothing is under way.

        Raises:
            Exception: that of the piece of work.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        wrong, self._wrong = self._wrong, None
        if wrong is not None:
            raise wrong


_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


class Ranks:
    """The processes that take part.

    Args:
        group: theirs; None for one process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def gather(self, text: str) -> list[str]:
        """What each rank says, in their order; every rank calls this, and waits for all."""
        if self.group is None:
            return [text]
        said = torch.frombuffer(bytearray(b"=" + text.encode()), dtype=torch.uint8)  # never empty
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(said)]), group=self.group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(said)] = said
        heard = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(heard, padded, group=self.group)
        return [bytes(h[1 : int(n)].tolist()).decode() for h, n in zip(heard, sizes, strict=True)]


def all_ranks() -> Ranks:
    """All ranks of the run. Collective: every rank asks for it; the group is made once per process group,
    whose patience it has."""
    everyone = dist.group.WORLD
    if not dist.is_initialized() or everyone is None:
        return Ranks()
    if everyone not in _groups:
        # They wait as long as the run does, and not as long as torch would have them.
        made = dist.new_group(backend="gloo", timeout=timeout_of(everyone))
        assert isinstance(made, dist.ProcessGroup)
        _groups[everyone] = made
    return Ranks(_groups[everyone])


SMALL = 1 << 16  # elements of a piece that is no work to write

Table = dict[str, dict[str, Any]]
"""By tensor: ``dtype``, ``shape``, and ``parts``, each with ``file``, ``offset`` and ``shape``. It goes into JSON."""


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Args:
        table: where each piece of each tensor will lie; the same on every rank.
        mine: the pieces that this rank writes.
        file: its file.
    """

    table: Table
    mine: Mapping[str, TensorShard]
    file: str


def file_of(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"tensors-{rank + 1:05d}-of-{world:05d}.safetensors"


def make_plan(boxes: Mapping[str, TensorShard], pieces: frozenset[str], ranks: Ranks) -> Plan:
    """Deals out the writing. Collective.

    A tensor that is no piece is the first rank's to write; a piece that several ranks hold is written by the one that
    has least to write so far, or by the first of them where it is small: whoever reads one number of a file has to read
    it whole, for its sum, and balancers' biases in every file would have every rank read all of them.

    Args:
        boxes: the tensors of this rank's tree, by name.
        pieces: which of them are pieces of tensors that the ranks hold together.
        ranks: all that take part.

    Raises:
        CheckpointError: a type that cannot be written, or pieces that do not tile their tensor.
    """
    told = {
        name: (str(NAMES.get(box.tensor.dtype, box.tensor.dtype)), box.global_shape, box.offset, box.sizes)
        for name, box in boxes.items()
        if name in pieces or ranks.rank == 0
    }
    heard = [json.loads(text) for text in ranks.gather(json.dumps(told))]
    table: Table = {}
    load = [0] * ranks.world
    mine = {}
    for name in dict.fromkeys(name for each in heard for name in each):
        dtype, shape = _agreed(name, [each[name] for each in heard if name in each])
        holders: dict[tuple[Dims, Dims], list[int]] = {}
        for rank, each in enumerate(heard):
            if name in each and math.prod(sizes := tuple(each[name][3])):
                holders.setdefault((tuple(each[name][2]), sizes), []).append(rank)
        if wrong := tiling_error(shape, list(holders)):
            raise CheckpointError(f"cannot save {name} {list(shape)}: {wrong}")
        parts = []
        for (offset, sizes), held_by in holders.items():
            small = math.prod(sizes) <= SMALL
            writer = held_by[0] if small else min(held_by, key=lambda rank: (load[rank], rank))
            load[writer] += math.prod(sizes)
            parts.append({"file": file_of(writer, ranks.world), "offset": list(offset), "shape": list(sizes)})
            if writer == ranks.rank:
                mine[name] = boxes[name]
        table[name] = {"dtype": dtype, "shape": list(shape), "parts": parts}
    return Plan(table, mine, file_of(ranks.rank, ranks.world))


def _agreed(name: str, told: list[Any]) -> tuple[str, Dims]:
    """The type and the whole shape, on which all ranks must agree."""
    kinds = {(dtype, tuple(shape)) for dtype, shape, *_ in told}
    if len(kinds) != 1:
        raise CheckpointError(f"cannot save {name}: ranks hold pieces of different tensors: {sorted(kinds)}")
    ((dtype, shape),) = kinds
    if dtype not in NAMES.values():
        raise CheckpointError(f"cannot save {name}: the file format has no name for tensors of {dtype}")
    return dtype, shape


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
    retention: Retention | None

    @property
    def beside(self) -> Path:
        """The directory that is filled before it is moved into place."""
        return temporary(self.path)


def save_tree(
    tree: Any,
    path: Path,
    *,
    step: int | None = None,
    retention: Retention | None = None,
    background: Background | None = None,
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
    if background is not None:
        background.wait()
    save = begin(tree, path, step, retention)
    if background is None:
        finish(save)
    else:
        held = hold(save)
        background.start(lambda: finish(held))


def begin(tree: Any, path: Path, step: int | None, retention: Retention | None) -> Save:
    """Stage 1."""
    encoded = encode(tree)
    ranks = all_ranks() if encoded.pieces else Ranks()
    if ranks.rank == 0:
        remove(temporary(path))
    return Save(path, step, encoded.plain, make_plan(encoded.boxes, encoded.pieces, ranks), ranks, retention)


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
    if save.retention is not None and save.ranks.rank == 0:
        prune(save, save.retention)


def _finish_alone(save: Save, files: dict[str, Digest]) -> None:
    seal(save, files)
    publish(save)
    if save.retention is not None:
        try:
            point(save, save.retention)
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


def point(save: Save, retention: Retention) -> None:
    """Stage 7."""
    retention.point(save.path)


def prune(save: Save, retention: Retention) -> None:
    """Stage 8."""
    retention.prune(save.path)
