"""Reading a checkpoint: plain values at once, tensors on demand, whole or sliced.

A file is verified against the manifest before its contents are used: its size when the checkpoint is opened, its
checksum when the file is first read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moekit.checkpoints.files import POINTERS, step_of, steps_in, target_of
from moekit.checkpoints.format import MANIFEST, Manifest, decode, map_leaves
from moekit.checkpoints.safetensors_file import DTYPES, TensorFile
from moekit.checkpoints.writing import STATE
from moekit.errors import CheckpointError
from moekit.files import read_regular
from moekit.shards import Dims, intersection, slices_of

LARGEST_STATE = 1 << 30  # bytes of plain values


class StoredShard(NamedTuple):
    """A shard of a tensor, stored in a file under the tensor's name."""

    file: str
    offset: Dims
    sizes: Dims


@dataclass(frozen=True)
class Handle:
    """A tensor of a checkpoint that has not been read; its shards tile it."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    shards: tuple[StoredShard, ...]
    checkpoint: Checkpoint = field(repr=False)

    def read(self, offset: Dims, sizes: Dims) -> Tensor:
        """Reads the slice of shape ``sizes`` at ``offset``, and no other bytes; on the CPU.

        Raises:
            CheckpointError: a file is damaged, or the slice exceeds the tensor.
        """
        overlaps = [
            (each, common) for each in self.shards if (common := intersection(offset, sizes, each.offset, each.sizes))
        ]
        if sum(math.prod(common[1]) for _, common in overlaps) != math.prod(sizes):
            raise CheckpointError(f"{self.checkpoint.path}: {self.name} {list(self.shape)} has no {sizes} at {offset}")
        if len(overlaps) == 1:
            return self._read_shard(overlaps[0][0], offset, sizes)
        out = torch.empty(sizes, dtype=self.dtype)
        for shard, common in overlaps:
            out[slices_of(*common, offset)] = self._read_shard(shard, *common)
        return out

    def _read_shard(self, shard: StoredShard, offset: Dims, sizes: Dims) -> Tensor:
        start = tuple(o - first for o, first in zip(offset, shard.offset, strict=True))
        return self.checkpoint.file(shard.file).read(self.name, start, sizes)

    def whole(self) -> Tensor:
        """Reads the whole tensor, on the CPU."""
        return self.read((0,) * len(self.shape), tuple(self.shape))


class Checkpoint:
    """An open checkpoint (``open_checkpoint``).

    Attributes:
        path: its directory.
        manifest: of its files.
        plain: the saved tree, with a ``Handle`` in place of each tensor.

    Raises:
        CheckpointError: it is damaged; names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        self._files: dict[str, TensorFile] = {}
        self._verified: set[str] = set()
        self.manifest.check_sizes(path)
        if STATE not in self.manifest.files:
            raise CheckpointError(f"{path / STATE} is missing from the manifest")
        self._verify([STATE])
        try:
            state = json.loads(read_regular(path / STATE, LARGEST_STATE))
            handles = {name: self._handle(name, entry) for name, entry in state["tensors"].items()}
            self.plain = decode(state["plain"], handles.__getitem__)
        except OSError as error:
            raise CheckpointError(f"cannot read {path / STATE}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path / STATE} is damaged: {type(error).__name__}: {error}") from error

    def _handle(self, name: str, entry: Mapping[str, Any]) -> Handle:
        shards = tuple(StoredShard(s["file"], tuple(s["offset"]), tuple(s["shape"])) for s in entry["parts"])
        if unknown := [shard.file for shard in shards if shard.file not in self.manifest.files]:
            raise ValueError(f"{name} is stored in {unknown[0]}, which is not in the manifest")
        return Handle(name, torch.Size(entry["shape"]), DTYPES[entry["dtype"]], shards, self)

    def _verify(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self._verified]
        self.manifest.verify(self.path, new)
        self._verified.update(new)

    def verify(self) -> None:
        """Verifies all files now: for callers that change something before they have read all tensors.

        Raises:
            CheckpointError: names the first damaged file, and the intact checkpoints in the same folder.
        """
        with _listing_intact(self.path):
            self._verify(self.manifest.files)

    def file(self, name: str) -> TensorFile:
        """A file of tensors, verified when it is first requested.

        Raises:
            CheckpointError: it is damaged; lists the intact checkpoints in the same folder.
        """
        if name not in self._files:
            with _listing_intact(self.path):
                self._verify([name])
            self._files[name] = TensorFile(self.path / name)
        return self._files[name]

    def whole(self) -> Any:
        """The saved tree, with every tensor read."""
        return map_leaves(self.plain, Handle.whole, Handle)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint's directory, intact or not, or a pointer to one."""
    return (path / MANIFEST).is_file() or (step_of(path) >= 0 and path.is_dir()) or _resolved(path) is not None


def _resolved(path: Path) -> Path | None:
    """The target of a pointer; None if the path is not a pointer."""
    return target_of(path.parent, path.name) if path.name in POINTERS and path.is_file() else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint: reads its manifest and plain values, and verifies the sizes of its files.

    Args:
        path: its directory, or a pointer to it (``checkpoints/last``).

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged; names the file, and the intact checkpoints in the
            same folder.
    """
    path = _resolved(path) or path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, but a checkpoint of moekit is a directory\n"
            "  a .ckpt file of Lightning's ModelCheckpoint around LitMoE can be loaded, not resumed"
        )
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}\n  a run writes its first after its first validation")
    if not (path / MANIFEST).exists() and (path / "checkpoints").is_dir():
        held = [path / "checkpoints" / name for name in ("best", "last") if target_of(path / "checkpoints", name)]
        there = " or ".join(map(str, held)) or "it has none yet"
        raise CheckpointError(f"{path} is a run, not a checkpoint\n  expected one of its checkpoints: {there}")
    with _listing_intact(path):
        return Checkpoint(path)


@contextmanager
def _listing_intact(path: Path) -> Iterator[None]:
    """Adds the intact checkpoints in the same folder to a ``CheckpointError``, newest first; the user chooses one."""
    try:
        yield
    except CheckpointError as error:
        if step_of(path) < 0:
            raise
        others = [other for other in reversed(steps_in(path.parent).values()) if other != path and is_intact(other)]
        if not others:
            raise CheckpointError(f"{error}\n  no other checkpoint in this folder is intact") from error
        listed = "".join(f"\n    {other}" for other in others)
        raise CheckpointError(
            f"{error}\n  intact checkpoints in this folder (pass one instead of the run):{listed}"
        ) from error


def is_intact(path: Path) -> bool:
    """Whether a checkpoint can be opened and every file matches its checksum. Reads all of it."""
    try:
        opened = Checkpoint(path)
        opened._verify(opened.manifest.files)
    except CheckpointError:
        return False
    return True
