"""Writing a checkpoint. Whatever happens meanwhile, the last intact checkpoint and its pointer stay as they are.

The stages, in order; a kill or a failure is safe at any point:

1. ``begin``: rank 0 clears the checkpoint's temporary directory; the ranks agree which rank writes which shard.
2. ``snapshot``: only in the background: copies tensors to host memory, so that training can continue.
3. ``write``: each rank writes its file, flushes it to the disk, and computes its checksum meanwhile.
4. ``exchange``: the ranks exchange checksums and errors; if one rank failed, all fail.
5. ``seal``: rank 0 writes the plain values and the manifest, and flushes the directory.
6. ``publish``: rank 0 moves the directory to its place, atomically.
7. ``Retention.point``: rank 0 replaces the pointers, each atomically; only now does the checkpoint count.
8. ``Retention.prune``: rank 0 removes older checkpoints.

What a kill leaves behind is removed by ``files.recover`` when the run is resumed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.checkpoints.files import Retention, last_of, remove, temporary
from moekit.checkpoints.format import Encoded, Manifest
from moekit.checkpoints.safetensors_file import NAMES, Digest, Pieces, write_file, write_tensors
from moekit.distributed import host_group
from moekit.errors import CheckpointError, SaveError
from moekit.files import make_directory, sync_directory
from moekit.shards import Dims, TensorShard, tiling_error

# ---- where the work runs ---------------------------------------------------------------------------------------------


class Background:
    """Runs one job at a time in a thread, for which a process that exits normally waits."""

    def __init__(self) -> None:
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Waits for the previous job, raises what it raised, and starts this one."""
        self.wait()
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job = executor.submit(job)
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Returns when no job is running; raises what the job raised."""
        if self._job is not None:
            wait_for([self._job])
            job, self._job = self._job, None
            job.result()


class Ranks:
    """The ranks of a process group, which save a checkpoint together; without a group, this process alone."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective."""
        values = [value] * self.world
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values


# ---- who writes what -------------------------------------------------------------------------------------------------

SMALL = 1 << 16  # elements up to which a replicated shard is always written by the lowest rank

Table = dict[str, dict[str, Any]]
"""JSON: by tensor ``dtype``, ``shape`` and its shards as ``parts``, each with ``file``, ``offset`` and ``shape``."""


def file_of(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"tensors-{rank + 1:05d}-of-{world:05d}.safetensors"


def assign_shards(
    shards: Mapping[str, TensorShard], sharded: Set[str], ranks: Ranks
) -> tuple[Table, dict[str, TensorShard]]:
    """Assigns each shard to a rank that holds it. Collective.

    Rank 0 writes the tensors that are not sharded. A shard that several ranks hold is written by the one that has least
    to write so far; a small one by the lowest of them. To read anything from a file, its whole checksum must be
    verified; if balancers' biases were spread over all files, every rank would have to read all files.

    Args:
        shards: the tensors of this rank's tree, by name.
        sharded: names of those that the ranks hold together.
        ranks: all ranks that save.

    Returns:
        Where each shard of each tensor will be stored, the same on every rank; and the shards that this rank writes.

    Raises:
        CheckpointError: a dtype is not supported, or the shards do not tile their tensor.
    """
    own = {
        name: (str(NAMES.get(shard.tensor.dtype, shard.tensor.dtype)), shard.global_shape, shard.offset, shard.sizes)
        for name, shard in shards.items()
        if name in sharded or ranks.rank == 0
    }
    by_rank = ranks.all_gather(own)
    table: Table = {}
    elements_to_write = [0] * ranks.world
    to_write = {}
    for name in dict.fromkeys(name for entries in by_rank for name in entries):
        dtype, shape = _agreed(name, [entries[name] for entries in by_rank if name in entries])
        holders: dict[tuple[Dims, Dims], list[int]] = {}
        for rank, entries in enumerate(by_rank):
            if name in entries and math.prod(entries[name][3]):
                holders.setdefault(entries[name][2:], []).append(rank)
        if error := tiling_error(shape, list(holders)):
            raise CheckpointError(f"cannot save {name} {list(shape)}: {error}")
        parts = []
        for (offset, sizes), held_by in holders.items():
            is_small = math.prod(sizes) <= SMALL
            writer = held_by[0] if is_small else min(held_by, key=lambda rank: (elements_to_write[rank], rank))
            elements_to_write[writer] += math.prod(sizes)
            parts.append({"file": file_of(writer, ranks.world), "offset": list(offset), "shape": list(sizes)})
            if writer == ranks.rank:
                to_write[name] = shards[name]
        table[name] = {"dtype": dtype, "shape": list(shape), "parts": parts}
    return table, to_write


def _agreed(name: str, entries: list[Any]) -> tuple[str, Dims]:
    """The dtype and global shape of a tensor, which must be the same on all ranks."""
    kinds = {(dtype, shape) for dtype, shape, *_ in entries}
    if len(kinds) != 1:
        raise CheckpointError(f"cannot save {name}: its dtype or shape differs between ranks: {sorted(kinds)}")
    ((dtype, shape),) = kinds
    if dtype not in NAMES.values():
        raise CheckpointError(f"cannot save {name}: safetensors does not support {dtype}")
    return dtype, shape


# ---- the stages ------------------------------------------------------------------------------------------------------

STATE = "state.json"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Save:
    """A checkpoint that is being saved.

    Args:
        path, step, retention, pieces: as in ``save_tree``.
        plain: plain values, for JSON.
        table, to_write: from ``assign_shards``.
        ranks: the ranks that save.
    """

    path: Path
    step: int | None
    plain: Any
    table: Table
    to_write: Mapping[str, TensorShard]
    ranks: Ranks
    retention: Retention | None
    pieces: Pieces | None = None

    @property
    def temporary(self) -> Path:
        """The directory that is filled before it is moved to its place."""
        return temporary(self.path)


def save_tree(
    tree: Any,
    path: Path,
    *,
    step: int | None = None,
    retention: Retention | None = None,
    background: Background | None = None,
    pieces: Pieces | None = None,
) -> None:
    """Saves a tree of plain values and tensors as a directory.

    A tree with shards (``TensorShard``, ``DTensor``) is saved by all ranks together: each calls this with a tree of the
    same form, and plain values are rank 0's. A tree without shards is saved by the calling process alone.

    Give every checkpoint a path of its own: to replace an existing directory takes two moves, and a kill between them
    leaves no checkpoint.

    Args:
        tree: nested dicts, lists and tuples.
        path: the directory; it appears when it is complete.
        step: number of optimizer steps done; None if it is not of a training run.
        retention: which pointers to set and which older checkpoints to remove; None: neither.
        background: writes while training continues; the call returns once the tensors are copied. None: returns when
            the checkpoint is saved.
        pieces: makes the values of a tensor of the meta device, by its name in the tree (``state_dict.model.…``).

    Raises:
        SaveError: it could not be written; the same on every rank. With ``background``: the previous one.
        CheckpointError: the tree contains something that cannot be saved.
    """
    if background is not None:
        background.wait()
    save = replace(begin(tree, path, step, retention), pieces=pieces)
    if background is None:
        finish(save)
    else:
        copied = snapshot(save)
        background.start(lambda: finish(copied))


def begin(tree: Any, path: Path, step: int | None, retention: Retention | None) -> Save:
    """Stage 1: separates tensors from plain values and agrees who writes what."""
    encoded = Encoded(tree)
    ranks = Ranks(host_group("checkpoints") if encoded.sharded else None)
    if ranks.rank == 0:
        remove(temporary(path), strict=False)  # what is left there is overwritten, or named by no manifest
    return Save(path, step, encoded.plain, *assign_shards(encoded.shards, encoded.sharded, ranks), ranks, retention)


STAGING = 1 << 28  # bytes of pinned memory; a power of two, to which torch would round it up


def snapshot(save: Save) -> Save:
    """Stage 2: copies all tensors, from a GPU through one buffer of pinned memory.

    Pinned copies of whole tensors would each be rounded up to a power of two, and locked until the process ends.
    """
    on_gpu = any(shard.tensor.is_cuda for shard in save.to_write.values())
    staging = torch.empty(STAGING if on_gpu else 0, dtype=torch.uint8, pin_memory=on_gpu)
    copies = {}
    for name, shard in save.to_write.items():
        if shard.tensor.is_cuda:
            copies[name] = replace(shard, tensor=copy_through(staging, shard.tensor))
        else:
            copies[name] = replace(shard, tensor=shard.tensor.detach().clone(memory_format=torch.contiguous_format))
    return replace(save, to_write=copies)


def copy_through(staging: Tensor, tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor on the CPU, made piece by piece through a buffer of bytes there."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    source, target = (t.detach().contiguous().view(-1).view(torch.uint8) for t in (tensor, copy))
    for pieces in zip(torch.split(source, len(staging)), torch.split(target, len(staging)), strict=True):
        piece = staging[: len(pieces[0])]
        piece.copy_(pieces[0], non_blocking=True)
        if tensor.is_cuda:
            torch.cuda.current_stream().synchronize()
        pieces[1].copy_(piece)
    return copy


def finish(save: Save) -> None:
    """Stages 3 to 8. Succeeds, or fails, on every rank.

    Raises:
        SaveError: a rank failed.
    """
    try:
        own, error = _attempt(lambda: write(save))
        digests = exchange(save, own or {}, error)
        if save.ranks.rank == 0:
            _, error = _attempt(lambda: _finish_on_rank_zero(save, digests))
        _raise_together(save, save.ranks.all_gather(_message(error)), error)
    except BaseException:
        if save.ranks.rank == 0:
            remove(save.temporary, strict=False)
        raise
    if save.retention is not None and save.ranks.rank == 0:
        save.retention.prune(save.path)


def _finish_on_rank_zero(save: Save, digests: dict[str, Digest]) -> None:
    seal(save, digests)
    publish(save)
    if save.retention is not None:
        try:
            save.retention.point(save.path)
        except OSError:
            if last_of(save.path.parent) != save.path:
                remove(save.path, strict=False)  # without a pointer it would only take up space
            raise


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """The result, or any error: it must reach the other ranks, which wait for this one."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _message(error: Exception | None) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "" if error is None else f"{type(error).__name__}: {error}"


def _raise_together(save: Save, messages: list[str], cause: Exception | None) -> None:
    """Raises on every rank if one of them has an error message."""
    for rank, message in enumerate(messages):
        if message:
            where = f" (on rank {rank})" if save.ranks.world > 1 else ""
            last = last_of(save.path.parent)
            untouched = "" if last is None else f"\n  the last intact one is untouched: {last}"
            raise SaveError(f"could not save the checkpoint {save.path}: {message}{where}{untouched}") from cause


def write(save: Save) -> dict[str, Digest]:
    """Stage 3: the digest of this rank's file; none if it has nothing to write."""
    make_directory(save.temporary)
    if not save.to_write:
        return {}
    file = file_of(save.ranks.rank, save.ranks.world)
    tensors = {name: shard.tensor for name, shard in save.to_write.items()}
    return {file: write_tensors(save.temporary / file, tensors, {"format": "pt"}, save.pieces)}


def exchange(save: Save, own: dict[str, Digest], error: Exception | None) -> dict[str, Digest]:
    """Stage 4: the digests of all ranks' files.

    Raises:
        SaveError: a rank could not write its file.
    """
    results = save.ranks.all_gather((own, _message(error)))
    _raise_together(save, [message for _, message in results], error)
    return {name: digest for files, _ in results for name, digest in files.items()}


def seal(save: Save, digests: dict[str, Digest]) -> None:
    """Stage 5: writes the plain values and the manifest.

    Raises:
        OSError: the disk is full, or a rank's file is not on this file system.
    """
    state = json.dumps({"plain": save.plain, "tensors": save.table}, allow_nan=False).encode()
    manifest = Manifest(save.step, {**digests, STATE: write_file(save.temporary / STATE, [state])})
    try:
        manifest.check_sizes(save.temporary)
    except CheckpointError as error:
        raise OSError(f"{error}\n  all ranks must write to one file system") from error
    manifest.write(save.temporary)
    sync_directory(save.temporary)


def publish(save: Save) -> None:
    """Stage 6: moves the directory to its place."""
    replaced = temporary(save.path, "old")
    remove(replaced, strict=False)
    if save.path.exists():
        os.rename(save.path, replaced)
    os.rename(save.temporary, save.path)
    sync_directory(save.path.parent)
    remove(replaced, strict=False)
