"""The safetensors format: a file of named tensors, written and hashed in one pass, read slice by slice.

Source: https://github.com/huggingface/safetensors#format. A file is eight bytes with the length of a JSON header, the
header, and the tensors without gaps, little-endian. The safetensors package reads these files (a test holds them to
it). It does not write them, because it copies tensors before it writes them and offers no hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.errors import CheckpointError
from moekit.files import begin_flush, flush, open_regular
from moekit.shards import Dims, contains

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Dtypes by their names in the format."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 24  # bytes hashed at a time
WRITTEN = 1 << 20  # bytes in one write: for several megabytes at once Linux seeks large free pages, at thrice the time
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Digest:
    """A file's checksum, in hexadecimal, and its size in bytes."""

    sha256: str
    size: int


Pieces = Callable[[str], Iterable[Tensor]]
"""Makes the values of a tensor, piece by piece, in the order of its elements."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, pieces: Pieces | None = None
) -> Digest:
    """Writes a file and flushes it to the disk.

    Args:
        path: the file.
        tensors: by name; those on the meta device have their values from ``pieces``.
        metadata: text to store with them.
        pieces: makes the values of a tensor of the meta device, so that they need not all be in memory.

    Raises:
        CheckpointError: the format does not support a tensor's dtype, or pieces are not of a tensor's size.
        OSError: the disk is full, or the like.
    """
    assert sys.byteorder == "little"
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligns every tensor
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise CheckpointError(f"{name}: safetensors does not support {tensor.dtype}")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    values = chain.from_iterable(_values(name, tensors[name], pieces) for name in order)
    return write_file(path, chain([len(text).to_bytes(8, "little"), text], _chunks(values)))


def _values(name: str, tensor: Tensor, pieces: Pieces | None) -> Iterator[Tensor]:
    if not tensor.is_meta:
        yield tensor
        return
    written = 0
    for piece in () if pieces is None else pieces(name):
        if piece.dtype != tensor.dtype:
            raise CheckpointError(f"{name}: a piece is {piece.dtype}, the tensor {tensor.dtype}")
        written += piece.numel()
        yield piece
    if written != tensor.numel():
        raise CheckpointError(f"{name}: its pieces have {written} elements, the tensor {tensor.numel()}")


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Digest:
    """Writes a file, flushes it to the disk, and hashes it on the way.

    Two threads hash and write one chunk while the next is made: of pieces that are made, two are in memory at a time.
    The disk begins to write meanwhile.

    Raises:
        OSError: the disk is full, or the like.
    """
    sha256, size, begun = hashlib.sha256(), 0, 0

    def write(chunk: bytes | memoryview) -> None:
        nonlocal begun
        _write_all(file, chunk)
        if (end := file.tell()) >= begun + CHUNK:
            begin_flush(file.fileno(), begun, end - begun)
            begun = end

    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(2) as threads:
        last: list[Future[None]] = []
        for chunk in chunks:
            for future in last:
                future.result()
            last = [threads.submit(sha256.update, chunk), threads.submit(write, chunk)]
            size += len(chunk)
        for future in last:
            future.result()
        flush(file.fileno())
    return Digest(sha256.hexdigest(), size)


def _write_all(file: FileIO, chunk: bytes | memoryview) -> None:
    """Writes a chunk whole, which an unbuffered file takes several calls for."""
    left = memoryview(chunk)
    while left:
        left = left[file.write(left[:WRITTEN]) :]


def _chunks(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    for tensor in tensors:
        memory = bytes_of(tensor.detach().cpu().contiguous())
        for start in range(0, len(memory), CHUNK):
            yield memory[start : start + CHUNK]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, readable and writable."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Entry:
    """A tensor in a file; ``start`` is the position of its first byte."""

    dtype: torch.dtype
    shape: Dims
    start: int


class TensorFile:
    """A safetensors file to read slices from; only its header, the ``entries`` by name, is kept in memory.

    Raises:
        CheckpointError: the file is unreadable, truncated or not in this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("the header is not a mapping")
            header.pop("__metadata__", None)
            self.entries = {name: _entry(entry, 8 + length, size) for name, entry in header.items()}
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error

    def read(self, name: str, offset: Dims, sizes: Dims) -> Tensor:
        """Reads a slice of a tensor, and no other bytes; on the CPU.

        Raises:
            CheckpointError: there is no such tensor, or no such slice.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path} holds no tensor '{name}'")
        if not contains(entry.shape, offset, sizes):
            raise CheckpointError(f"{self.path}: {name} {list(entry.shape)} has no {list(sizes)} at {list(offset)}")
        out = torch.empty(sizes, dtype=entry.dtype)
        memory, at = bytes_of(out), 0
        with open_regular(self.path) as file:
            for start, length in runs(entry.shape, offset, sizes):
                file.seek(entry.start + start * out.element_size())
                end = at + length * out.element_size()
                while at < end:
                    got = file.readinto(memory[at:end])
                    if not got:
                        raise CheckpointError(f"{self.path} ends within {name}: it was truncated")
                    at += got
        return out


def _entry(entry: Any, data: int, size: int) -> Entry:
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError("a size in the header is negative")
    if end - start != math.prod(shape) * dtype.itemsize or data + end > size:
        raise ValueError("a tensor is longer than the file, or than its shape")
    return Entry(dtype, shape, data + start)


def runs(shape: Dims, offset: Dims, sizes: Dims) -> Iterator[tuple[int, int]]:
    """The contiguous runs of elements that make up a slice of a tensor, in order: start and length of each."""
    if 0 in sizes:
        return
    full = len(shape)
    while full and sizes[full - 1] == shape[full - 1]:
        full -= 1  # the slice spans all dimensions from here on, so one run covers them
    outer = max(0, full - 1)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    length = math.prod(sizes[outer:])
    first = sum(o * stride for o, stride in zip(offset, strides, strict=True))
    for index in product(*(range(n) for n in sizes[:outer])):
        yield first + sum(i * stride for i, stride in zip(index, strides, strict=False)), length


def digest_of(path: Path) -> Digest:
    """The checksum and size of a file, which is read completely.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
