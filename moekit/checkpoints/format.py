"""The two JSON files of a checkpoint: the saved tree (``state.json``) and the manifest.

JSON has no tuples, no keys but strings, no NaN and no bytes. These are encoded as an object with one key that begins
with ``$``. A tensor is ``{"$tensor": name}``; its name is the path of keys that leads to it.
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
from moekit.checkpoints.safetensors_file import Digest, digest_of, write_file
from moekit.errors import CheckpointError
from moekit.files import read_regular
from moekit.shards import TensorShard, local_shard


class Encoded:
    """A tree, separated into plain values and tensors.

    Containers are copied, tensors are not. A tensor that occurs more than once gets one name and is written once.

    Args:
        tree: dicts, lists and tuples of None, bool, int, float, str, bytes, tensors, ``DTensor``s and ``TensorShard``s.

    Attributes:
        plain: the tree for JSON, with references in place of tensors.
        shards: this rank's shards of the tensors, by name.
        sharded: names of the tensors that came as a ``TensorShard`` or ``DTensor``: other ranks hold the rest.

    Raises:
        CheckpointError: the tree contains something else; the message says where.
    """

    def __init__(self, tree: Any) -> None:
        self.shards: dict[str, TensorShard] = {}
        self.sharded: set[str] = set()
        self._names: dict[tuple[Any, ...], str] = {}
        self.plain = self._encode(tree, ())

    def _encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor | TensorShard):
            return {"$tensor": self._name_of(value, path)}
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
            items = [(key, self._encode(each, (*path, str(key)))) for key, each in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(items)
            return {"$pairs": [[self._encode(key, (*path, "a key")), each] for key, each in items]}
        if isinstance(value, list | tuple):
            each = [self._encode(item, (*path, str(i))) for i, item in enumerate(value)]
            return each if isinstance(value, list) else {"$tuple": each}
        raise CheckpointError(
            f"cannot save a {type(value).__module__}.{type(value).__qualname__} at {'.'.join(path)}\n"
            "  expected plain values (None, bool, int, float, str, bytes, dict, list, tuple) and tensors"
        )

    def _name_of(self, value: Tensor | TensorShard, path: tuple[str, ...]) -> str:
        identity = _identity(value)
        if identity in self._names:
            return self._names[identity]
        base = name = ".".join(path) or "tensor"
        repeat = 1
        while name in self.shards:
            repeat += 1
            name = f"{base}#{repeat}"
        if isinstance(value, TensorShard):
            self.shards[name] = TensorShard(name, value.global_shape, value.offset, value.tensor.detach())
        else:
            self.shards[name] = local_shard(name, value.detach())
        if isinstance(value, TensorShard | DTensor):
            self.sharded.add(name)
        self._names[identity] = name
        return name


def _identity(value: Tensor | TensorShard) -> tuple[Any, ...]:
    """Equal for the same view of the same memory, and for the same shard of it: tied weights."""
    tensor, region = (
        (value.tensor, (value.global_shape, value.offset)) if isinstance(value, TensorShard) else (value, ())
    )
    if isinstance(tensor, DTensor) or not tensor.numel() or tensor.is_meta:
        return (id(value),)
    memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *memory, tuple(tensor.shape), tensor.stride(), tensor.dtype, region


def decode(plain: Any, tensor: Callable[[str], Any]) -> Any:
    """The tree that was encoded.

    Args:
        plain: ``Encoded.plain``, read back from JSON.
        tensor: returns what to insert for the tensor of a name.

    Raises:
        CheckpointError: an object has a ``$`` key that ``Encoded`` does not write.
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
    raise CheckpointError(f"{key!r} is not in this format: written by a newer moekit?")


def map_leaves(tree: Any, value_of: Callable[[Any], Any], kind: type) -> Any:
    """A copy of the tree with ``value_of(leaf)`` in place of each leaf of one type."""
    if isinstance(tree, kind):
        return value_of(tree)
    if isinstance(tree, dict):
        return {key: map_leaves(value, value_of, kind) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_leaves(value, value_of, kind) for value in tree]
    return tuple(map_leaves(value, value_of, kind) for value in tree) if isinstance(tree, tuple) else tree


FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 26  # bytes; a hundred for each file
MAX_THREADS = 8  # files hashed concurrently: more would strain the disk and memory
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint, with their sizes and checksums.

    Args:
        step: number of optimizer steps done; None if it is not of a training run.
        files: the digest of each file, by name.
        moekit: the version that wrote it.
        format: the version of the format.
    """

    step: int | None
    files: Mapping[str, Digest]
    moekit: str = moekit.__version__
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Writes the manifest and flushes it to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        plain = asdict(self)
        write_file(directory / MANIFEST, [json.dumps({**plain, "sha256": _checksum(plain)}, indent=1).encode()])

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads the manifest and verifies its own checksum.

        Raises:
            CheckpointError: it is missing, damaged, or of a format that this version does not know.
        """
        path = directory / MANIFEST
        try:
            plain = json.loads(read_regular(path, LARGEST_MANIFEST))
            checksum = plain.pop("sha256")
            if plain["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: format {plain['format']!r}, written by moekit {plain['moekit']}\n"
                    f"  this moekit ({moekit.__version__}) reads format {FORMAT}"
                )
            files = {name: Digest(str(d["sha256"]), int(d["size"])) for name, d in plain["files"].items()}
            if checksum != _checksum(plain) or not all(FILE_NAME.fullmatch(name) for name in files):
                raise ValueError("its own checksum does not match")
            return cls(plain["step"], files, plain["moekit"], plain["format"])
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path} is missing or unreadable: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def check_sizes(self, directory: Path) -> None:
        """Verifies the sizes of all files, without reading them.

        Raises:
            CheckpointError: a file is missing or has another size; names the first.
        """
        for name, digest in self.files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, but the manifest lists it")
            if (size := path.stat().st_size) != digest.size:
                raise CheckpointError(f"{path} is damaged: it has {size} bytes, but was written with {digest.size}")

    def verify(self, directory: Path, names: Iterable[str]) -> None:
        """Verifies the checksums of files, which are read completely, several at a time.

        Raises:
            CheckpointError: a checksum does not match; names the first such file in the order of ``names``.
        """
        paths = [directory / name for name in names]
        if len(paths) < 2:  # most checkpoints: a thread would cost more than a small file
            list(map(self._verify, paths))
            return
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:  # hashing releases the GIL
            list(threads.map(self._verify, paths))  # raises the first error in order

    def _verify(self, path: Path) -> None:
        try:
            found = digest_of(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        if found != self.files[path.name]:
            raise CheckpointError(f"{path} is damaged: its sha256 does not match the manifest")


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
