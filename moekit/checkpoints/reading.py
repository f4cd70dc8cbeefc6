"""Reading a checkpoint: plain values at once, tensors when they are asked for, whole or any slice of them.

Every file is compared with the manifest before anything in it is used: its size when the checkpoint is opened, its
sha256 when it is first read from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoints.files import POINTERS, step_of, steps_in, target_of
from moekit.checkpoints.format import MANIFEST, Manifest, decode, map_leaves
from moekit.checkpoints.safetensors_file import DTYPES, TensorFile
from moekit.checkpoints.writing import STATE
from moekit.errors import CheckpointError
from moekit.shards.shard import Dims, intersection, slices_of


@dataclass(frozen=True)
class Part:
    """A piece of a tensor in a file.

    Args:
        file: its name.
        offset: where the piece begins in the whole tensor.
        sizes: of the piece.
    """

    file: str
    offset: Dims
    sizes: Dims


@dataclass(frozen=True)
class Handle:
    """A tensor of a checkpoint that is not read yet.

    Args:
        name: under which it lies in the files.
        shape: of the whole tensor.
        dtype: its type.
        parts: the pieces that tile it.
        files: reads from the checkpoint's files.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    parts: tuple[Part, ...]
    files: Files = field(repr=False)

    def read(self, offset: Dims, sizes: Dims) -> Tensor:
        """A slice, on the CPU; only what it takes is read.

        Args:
            offset: where it begins.
            sizes: its shape.

        Raises:
            CheckpointError: a file is damaged, or the tensor has no such slice.
        """
        meetings = [
            (part, common) for part in self.parts if (common := intersection(offset, sizes, part.offset, part.sizes))
        ]
        if sum(math.prod(common[1]) for _, common in meetings) != math.prod(sizes):
            raise CheckpointError(f"{self.files.path}: {self.name} {list(self.shape)} has no {sizes} at {offset}")
        if len(meetings) == 1:
            part, (start, _) = meetings[0]
            return self.files.read(part.file, self.name, _within(start, part.offset), sizes)
        out = torch.empty(sizes, dtype=self.dtype)
        for part, (start, size) in meetings:
            piece = self.files.read(part.file, self.name, _within(start, part.offset), size)
            out[slices_of(start, size, offset)] = piece
        return out

    def whole(self) -> Tensor:
        """All of it, on the CPU.

        Raises:
            CheckpointError: a file is damaged.
        """
        return self.read((0,) * len(self.shape), tuple(self.shape))


def _within(start: Dims, offset: Dims) -> Dims:
    return tuple(s - o for s, o in zip(start, offset, strict=True))


class Files:
    """The files of tensors of a checkpoint, each compared with the manifest before it is first read from.

    Args:
        path: the checkpoint's directory.
        manifest: what they must hold.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._open: dict[str, TensorFile] = {}
        self._checked: set[str] = set()

    def check(self, names: Iterable[str]) -> None:
        """Reads files whole, each once, several at a time, and compares their sums.

        Raises:
            CheckpointError: naming the first that is damaged.
        """
        new = [name for name in names if name not in self._checked]
        self.manifest.check_sums(self.path, new)
        self._checked.update(new)

    def read(self, file: str, name: str, offset: Dims, sizes: Dims) -> Tensor:
        """A slice of a tensor in a file.

        Raises:
            CheckpointError: the file is damaged; naming the whole checkpoints beside this one.
        """
        if file not in self._open:
            with _advising(self.path):
                self.check([file])
            self._open[file] = TensorFile(self.path / file)
        return self._open[file].read(name, offset, sizes)


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Args:
        path: its directory.
        manifest: what it consists of.
        plain: the tree that was saved, with a ``Handle`` for each tensor.
        files: its files of tensors.
    """

    path: Path
    manifest: Manifest
    plain: Any
    files: Files = field(repr=False)

    def whole(self) -> Any:
        """The tree, with every tensor read.

        Raises:
            CheckpointError: a file is damaged.
        """
        return map_leaves(self.plain, Handle.whole, Handle)

    def verify(self) -> None:
        """Compares every byte with the manifest, now: for whoever changes things before all tensors are read.

        Raises:
            CheckpointError: naming the first file that is damaged, and the whole checkpoints beside it.
        """
        with _advising(self.path):
            self.files.check(self.manifest.files)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is the directory of a checkpoint, whole or not, or a pointer to one."""
    return (path / MANIFEST).is_file() or (step_of(path) >= 0 and path.is_dir()) or _pointed(path) is not None


def _pointed(path: Path) -> Path | None:
    return target_of(path.parent, path.name) if path.name in POINTERS and path.is_file() else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint: reads its manifest and its plain values, and looks at the sizes of its files.

    Args:
        path: its directory, or a pointer to it (``checkpoints/last``).

    Raises:
        CheckpointError: there is none, or it is damaged; naming the file, and the whole checkpoints beside it.
    """
    path = _pointed(path) or path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint of moekit is a directory\n"
            "  files of torch.save are not read: they may hold code, which would run"
        )
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}\n  a run writes its first after its first validation")
    with _advising(path):
        return _open(path)


def _open(path: Path) -> Checkpoint:
    manifest = Manifest.read(path)
    manifest.check_sizes(path)
    if STATE not in manifest.files:
        raise CheckpointError(f"{path / STATE} is missing from the manifest")
    files = Files(path, manifest)
    files.check([STATE])
    try:
        state = json.loads((path / STATE).read_bytes())
        handles = {name: _handle(name, entry, files) for name, entry in state["tensors"].items()}
        return Checkpoint(path, manifest, decode(state["plain"], handles.__getitem__), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / STATE} is damaged: {type(error).__name__}: {error}") from error


def _handle(name: str, entry: Mapping[str, Any], files: Files) -> Handle:
    parts = tuple(Part(p["file"], tuple(p["offset"]), tuple(p["shape"])) for p in entry["parts"])
    if strangers := [part.file for part in parts if part.file not in files.manifest.files]:
        raise ValueError(f"{name} lies in {strangers[0]}, which is not in the manifest")
    return Handle(name, torch.Size(entry["shape"]), DTYPES[entry["dtype"]], parts, files)


@contextmanager
def _advising(path: Path) -> Iterator[None]:
    """Whatever is wrong with a checkpoint is told with the whole ones beside it."""
    try:
        yield
    except CheckpointError as error:
        raise _advised(path, error) from error


def _advised(path: Path, error: CheckpointError) -> CheckpointError:
    """The error, with the whole checkpoints beside this one, newest first. None is taken without being asked for."""
    if step_of(path) < 0:
        return error
    others = [other for other in reversed(steps_in(path.parent).values()) if other != path and is_intact(other)]
    if not others:
        return CheckpointError(f"{error}\n  no other checkpoint beside it is whole")
    listed = "".join(f"\n    {other}" for other in others)
    return CheckpointError(f"{error}\n  whole ones beside it, to be named in place of the run:{listed}")


def is_intact(path: Path) -> bool:
    """Whether a checkpoint holds what it was written with, to the last bit. Reads all of it."""
    try:
        files = _open(path).files
        files.check(files.manifest.files)
    except CheckpointError:
        return False
    return True
