"""The safetensors format: a file of named tensors, written and hashed in one pass, read slice by slice.

Source: the format as its authors describe it (https://github.com/huggingface/safetensors#format): eight bytes with the
length of a JSON header, the header, the tensors one after another without gaps, little-endian. Their own package reads
what is written here, and the tests hold it to that; it is not used because it offers no hash of what it writes, and
copies tensors before it writes them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.errors import CheckpointError
from moekit.shards.shard import Dims

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of types."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 24  # bytes hashed and written at a time
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Digest:
    """What a file holds, in a few bytes.

    Args:
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Digest:
    """Writes a file through to the disk.

    Raises:
        CheckpointError: a tensor of a type that the format has no name for.
        OSError: the disk is full, or the like.
    """
    assert sys.byteorder == "little"
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # every tensor starts aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise CheckpointError(f"{name}: the file format has no name for tensors of {tensor.dtype}")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    seen, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in _chunks([len(text).to_bytes(8, "little"), text], order, tensors):
            file.write(chunk)
            seen.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Digest(seen.hexdigest(), size)


def _chunks(head: list[bytes], order: list[str], tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield from head
    for name in order:
        whole = bytes_of(tensors[name].detach().cpu().contiguous())
        for start in range(0, len(whole), CHUNK):
            yield whole[start : start + CHUNK]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to be read or filled."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file.

    Args:
        dtype: its type.
        shape: its sizes.
        start: its first byte, counted from the start of the file.
    """

    dtype: torch.dtype
    shape: Dims
    start: int


class TensorFile:
    """A file of tensors to read from. Nothing but its header is held.

    Args:
        path: the file.

    Attributes:
        entries: where each tensor lies, by name.
        metadata: the texts that were written with them.

    Raises:
        CheckpointError: it is no such file, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                    raise ValueError("its header does not fit in it")
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self.entries = {name: _entry(entry, 8 + length, size) for name, entry in header.items()}
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no whole safetensors file: {error}") from error

    def read(self, name: str, offset: Dims, sizes: Dims) -> Tensor:
        """A slice of a tensor, on the CPU; only its bytes are read.

        Raises:
            CheckpointError: there is no such tensor, or no such slice.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path} holds no tensor '{name}'")
        fits = len(offset) == len(sizes) == len(entry.shape)
        if not fits or any(o < 0 or o + n > g for o, n, g in zip(offset, sizes, entry.shape, strict=True)):
            raise CheckpointError(f"{self.path}: {name} {list(entry.shape)} has no {list(sizes)} at {list(offset)}")
        out = torch.empty(sizes, dtype=entry.dtype)
        memory, at = bytes_of(out), 0
        with self.path.open("rb", buffering=0) as file:
            for start, length in runs(entry.shape, offset, sizes):
                file.seek(entry.start + start * out.element_size())
                end = at + length * out.element_size()
                while at < end:
                    got = file.readinto(memory[at:end])
                    if not got:
                        raise CheckpointError(f"{self.path} ends within {name}: it was cut short")
                    at += got
        return out


def _entry(entry: Any, data: int, size: int) -> Entry:
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError("a negative size in its header")
    if end - start != math.prod(shape) * dtype.itemsize or data + end > size:
        raise ValueError("a tensor does not fit in it")
    return Entry(dtype, shape, data + start)


def runs(shape: Dims, offset: Dims, sizes: Dims) -> Iterator[tuple[int, int]]:
    """The stretches of a tensor in memory that make up a slice of it: where each begins, and its length; in order."""
    if 0 in sizes:
        return
    whole = len(shape)
    while whole and sizes[whole - 1] == shape[whole - 1]:
        whole -= 1  # dimensions from here on are taken whole, so that one stretch spans them
    outer = max(0, whole - 1)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    length = math.prod(sizes[outer:])
    first = sum(o * stride for o, stride in zip(offset, strides, strict=True))
    for place in product(*(range(n) for n in sizes[:outer])):
        yield first + sum(i * stride for i, stride in zip(place, strides, strict=False)), length


def digest_of(path: Path) -> Digest:
    """Reads a whole file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
