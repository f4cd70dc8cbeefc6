"""A nested tree of plain values and tensors, as JSON and named tensors.

JSON has no tuples, no keys but text, no NaN and no bytes: what it lacks is written as an object with one key that
begins with ``$``. A tensor is ``{"$tensor": name}``, and its name is the path of keys that leads to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

import moekit
from moekit.checkpoints.safetensors_file import Digest, digest_of
from moekit.errors import CheckpointError
from moekit.shards.shard import TensorShard, shard_of_dtensor, unsharded


@dataclass(frozen=True)
class Encoded:
    """A tree taken apart.

    Args:
        plain: what goes into JSON.
        boxes: the tensors, by name.
        pieces: names of those that came as pieces, a ``Box`` or a ``DTensor``: other ranks hold the rest.
    """

    plain: Any
    boxes: Mapping[str, TensorShard]
    pieces: frozenset[str]


def encode(tree: Any) -> Encoded:
    """Takes a tree apart.

    Containers are copied, tensors are not. A tensor that stands in several places is named, and written, once.

    Args:
        tree: dicts, lists and tuples of None, bool, int, float, str, bytes, tensors, ``DTensor``s and boxes.

    Raises:
        CheckpointError: anything else in it; the message says where.
    """
    encoder = _Encoder()
    plain = encoder.encode(tree, ())
    return Encoded(plain, encoder.boxes, frozenset(encoder.pieces))


class _Encoder:
    def __init__(self) -> None:
        self.boxes: dict[str, TensorShard] = {}
        self.pieces: set[str] = set()
        self.seen: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor | TensorShard):
            return {"$tensor": self.tensor(value, path)}
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, Mapping):
            items = [(key, self.encode(each, (*path, str(key)))) for key, each in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(items)
            return {"$pairs": [[self.encode(key, (*path, "a key")), each] for key, each in items]}
        if isinstance(value, list | tuple):
            each = [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]
            return each if isinstance(value, list) else {"$tuple": each}
        raise CheckpointError(
            f"cannot save a {type(value).__module__}.{type(value).__qualname__} at {'.'.join(path)}\n"
            "  expected plain values (None, bool, int, float, str, bytes, dict, list, tuple) and tensors"
        )

    def tensor(self, value: Tensor | TensorShard, path: tuple[str, ...]) -> str:
        identity = _identity(value)
        if identity in self.seen:
            return self.seen[identity]
        base = name = ".".join(path) or "tensor"
        again = 1
        while name in self.boxes:
            again += 1
            name = f"{base}#{again}"
        if isinstance(value, TensorShard):
            self.boxes[name] = TensorShard(name, value.global_shape, value.offset, value.tensor.detach())
        elif isinstance(value, DTensor):
            self.boxes[name] = shard_of_dtensor(name, value.detach())  # type: ignore[arg-type]
        else:
            self.boxes[name] = unsharded(name, value.detach())
        if isinstance(value, TensorShard | DTensor):
            self.pieces.add(name)
        self.seen[identity] = name
        return name


def _identity(value: Tensor | TensorShard) -> tuple[Any, ...]:
    """Equal for tensors that are one, and for the same piece of one: tied weights."""
    tensor, place = (
        (value.tensor, (value.global_shape, value.offset)) if isinstance(value, TensorShard) else (value, ())
    )
    if isinstance(tensor, DTensor) or not tensor.numel():
        return (id(value),)
    memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *memory, tuple(tensor.shape), tensor.stride(), tensor.dtype, place


def decode(plain: Any, tensor: Callable[[str], Any]) -> Any:
    """The tree again.

    Args:
        plain: what ``encode`` gave, read back from JSON.
        tensor: what is to stand for the tensor of a name.

    Raises:
        CheckpointError: an object with a ``$`` that ``encode`` does not write.
    """
    if isinstance(plain, list):
        return [decode(item, tensor) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or not (key := next(iter(plain))).startswith("$"):
        return {key: decode(value, tensor) for key, value in plain.items()}
    value = plain[key]
    if key == "$tensor":
        return tensor(value)
    if key == "$tuple":
        return tuple(decode(item, tensor) for item in value)
    if key == "$pairs":
        return {decode(name, tensor): decode(each, tensor) for name, each in value}
    if key == "$float":
        return float(value)
    if key == "$bytes":
        return base64.b64decode(value)
    raise CheckpointError(f"{key!r} is no part of this format: written by a newer moekit?")


def map_leaves(tree: Any, value_of: Callable[[Any], Any], kind: type) -> Any:
    """The tree with ``value_of(leaf)`` for each leaf of one type."""
    if isinstance(tree, kind):
        return value_of(tree)
    if isinstance(tree, dict):
        return {key: map_leaves(value, value_of, kind) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_leaves(value, value_of, kind) for value in tree]
    return tuple(map_leaves(value, value_of, kind) for value in tree) if isinstance(tree, tuple) else tree


FORMAT = 1
MANIFEST = "manifest.json"
AT_ONCE = 8  # files that are summed at the same time: more would ask much of a disk, and of memory
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Args:
        step: optimizer steps behind it; None where it is of no training run.
        files: the digest of each file, by name.
        moekit: the version that wrote it.
        format: the version of this format.
    """

    step: int | None
    files: Mapping[str, Digest]
    moekit: str = moekit.__version__
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Writes it, through to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        plain = asdict(self)
        write_file(directory / MANIFEST, json.dumps({**plain, "sha256": _own(plain)}, indent=1).encode())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads it, and compares it with its own sum.

        Raises:
            CheckpointError: it is missing, altered, or of a format that this moekit does not know.
        """
        path = directory / MANIFEST
        try:
            plain = json.loads(path.read_bytes())
            own = plain.pop("sha256")
            if plain["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: format {plain['format']!r}, written by moekit {plain['moekit']}\n"
                    f"  this moekit ({moekit.__version__}) reads format {FORMAT}"
                )
            files = {name: Digest(str(d["sha256"]), int(d["size"])) for name, d in plain["files"].items()}
            if own != _own(plain) or not all(PLAIN_NAME.fullmatch(name) for name in files):
                raise ValueError("it does not add up to its own sum")
            return cls(plain["step"], files, plain["moekit"], plain["format"])
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path} is missing or unreadable: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def check_sizes(self, directory: Path) -> None:
        """Compares the sizes of all files, which costs nothing.

        Raises:
            CheckpointError: naming the first that is missing or too short.
        """
        for name, digest in self.files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, and the manifest beside it asks for it")
            if (size := path.stat().st_size) != digest.size:
                raise CheckpointError(f"{path} is damaged: it has {size} bytes, and was written with {digest.size}")

    def check_sums(self, directory: Path, names: Iterable[str]) -> None:
        """Reads files whole, several at a time, and compares their sums.

        Raises:
            CheckpointError: naming the first that differs, in the order of ``names``.
        """
        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as threads:  # hashing lets other threads run
            list(threads.map(lambda name: self._check_sum(directory / name), names))  # in order: so is the first error

    def _check_sum(self, path: Path) -> None:
        try:
            found = digest_of(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        if found != self.files[path.name]:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one it was written with")


def _own(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_file(path: Path, data: bytes) -> Digest:
    """Writes a file through to the disk.

    Raises:
        OSError: the disk is full, or the like.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Digest(hashlib.sha256(data).hexdigest(), len(data))
