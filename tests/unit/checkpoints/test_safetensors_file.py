"""Files of tensors: as the format's own package writes and reads them, and read slice by slice."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from region_splits import Dims, Split, numbered, two_splits
from safetensors import safe_open
from torch import Tensor

from moekit.checkpoints import safetensors_file
from moekit.checkpoints.safetensors_file import (
    DTYPES,
    TensorFile,
    _write_all,
    bytes_of,
    digest_of,
    runs,
    write_file,
    write_tensors,
)
from moekit.errors import CheckpointError
from moekit.shards import slices_of


def bits(tensor: Tensor) -> bytes:
    return bytes(bytes_of(tensor.contiguous()))


@settings(max_examples=150, deadline=None)
@given(two_splits())
def test_runs_of_memory_are_the_elements_of_a_slice(shapes: tuple[Dims, Split, Split]) -> None:
    shape, split, _ = shapes
    flat = numbered(shape).reshape(-1)
    for offset, sizes in split:
        found = list(runs(shape, offset, sizes))
        got = torch.cat([flat[start : start + n] for start, n in found]) if found else flat[:0]
        assert torch.equal(got.reshape(sizes), numbered(shape)[slices_of(offset, sizes)])
        if sizes == shape and math.prod(shape):
            assert len(found) == 1
    assert list(runs((64, 1024), (3, 0), (1, 1024))) == [(3 * 1024, 1024)]


@pytest.mark.parametrize("name", DTYPES)
def test_the_formats_own_package_reads_every_dtype_that_is_written(name: str, tmp_path: Path) -> None:
    raw = torch.randint(0, 2 if name == "BOOL" else 100, (3, 5, 8), dtype=torch.uint8)
    tensor = raw.view(torch.bool) if name == "BOOL" else raw.view(DTYPES[name])
    tensors = {"a.b": tensor, "odd": torch.ones(3, dtype=torch.uint8), "scalar": torch.tensor(2.5), "none": tensor[:0]}
    path = tmp_path / "t.safetensors"
    digest = write_tensors(path, tensors, {"format": "pt", "note": "é"})
    assert digest == digest_of(path) and digest.size == path.stat().st_size
    theirs = safetensors.torch.load_file(path)
    assert theirs.keys() == tensors.keys()
    for key, value in tensors.items():
        assert theirs[key].dtype == value.dtype and theirs[key].shape == value.shape
        assert bits(theirs[key]) == bits(value)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "é"}
    ours = TensorFile(path)
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in ours.entries.values())  # for memory maps
    assert bits(ours.read("a.b", (1, 2, 0), (2, 1, 1))) == bits(tensor[1:, 2:3, :1])


def test_files_of_the_formats_own_package_are_read(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(4, 6), "y": torch.arange(5), "z": torch.randn(3).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors")
    ours = TensorFile(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(ours.read(name, (0,) * tensor.dim(), tuple(tensor.shape)), tensor)
    assert torch.equal(ours.read("x", (1, 2), (2, 3)), tensors["x"][1:3, 2:5])


def test_tensors_that_are_read_begin_where_torch_puts_its_own(tmp_path: Path) -> None:
    """At a multiple of 64 bytes, wherever they are in the file. Sums of matrix products depend on the address: off a
    multiple of 16 bytes, MKL adds in another order, and a resumed run would end with other bits.
    """
    path = tmp_path / "t.safetensors"
    write_tensors(path, {f"{n}": torch.arange(float(n)) for n in range(1, 20)}, {"format": "pt"})
    file = TensorFile(path)
    assert len({entry.start % 64 for entry in file.entries.values()}) > 8
    for name, entry in file.entries.items():
        (n,) = entry.shape
        assert all(file.read(name, (start,), (n - start,)).data_ptr() % 64 == 0 for start in range(n))


def test_an_unsupported_dtype_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^w: safetensors does not support torch\.complex128$"):
        write_tensors(tmp_path / "t.safetensors", {"w": torch.zeros(2, dtype=torch.complex128)})


def test_errors_name_the_invalid_file_or_slice(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.zeros(4, 4)})
    good = path.read_bytes()
    for bad in (b"", b"12345678", good[:40], good[:-1], b"\xff" * 8 + good[8:], good.replace(b'"F32"', b'"F16"')):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"t\.safetensors is not a valid safetensors file"):
            TensorFile(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*none\.safetensors: No such file"):
        TensorFile(tmp_path / "none.safetensors")
    path.write_bytes(good)
    file = TensorFile(path)
    with pytest.raises(CheckpointError, match="holds no tensor 'y'"):
        file.read("y", (0,), (1,))
    with pytest.raises(CheckpointError, match=r"x \[4, 4\] has no \[2, 4\] at \[3, 0\]"):
        file.read("x", (3, 0), (2, 4))
    path.write_bytes(good[:-4])
    with pytest.raises(CheckpointError, match="ends within x: it was truncated"):
        file.read("x", (0, 0), (4, 4))


def test_a_tensor_of_the_meta_device_is_written_from_pieces(tmp_path: Path) -> None:
    whole, here = torch.arange(24.0).view(4, 6), torch.arange(3)
    meta = torch.empty(4, 6, device="meta")
    written: list[str] = []

    def pieces(name: str) -> Iterator[torch.Tensor]:
        for row in whole:
            written.append(name)
            yield row

    write_tensors(tmp_path / "a", {"whole": meta, "here": here}, pieces=pieces)
    found = safetensors.torch.load_file(tmp_path / "a")
    assert torch.equal(found["whole"], whole) and torch.equal(found["here"], here) and written == ["whole"] * 4


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (lambda name: [torch.zeros(5)], "w: its pieces have 5 elements, the tensor 6"),
        (lambda name: [torch.zeros(6).half()], "w: a piece is torch.float16, the tensor torch.float32"),
        (None, "w: its pieces have 0 elements"),
    ],
)
def test_pieces_that_are_not_the_tensor_are_an_error(pieces: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_tensors(tmp_path / "a", {"w": torch.empty(6, device="meta")}, pieces=pieces)


def test_a_file_is_written_whole_by_writes_of_a_megabyte_that_may_end_early(tmp_path: Path) -> None:
    """Larger ones take Linux thrice the time."""
    asked: list[int] = []

    class Early:
        def write(self, data: memoryview) -> int:
            asked.append(len(data))
            return file.write(data[: max(1, len(data) * 2 // 3)])

    content = bytes(range(256)) * 10_000
    with (tmp_path / "file").open("wb", buffering=0) as file:
        _write_all(Early(), content)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == content and max(asked) == 1 << 20


@pytest.mark.parametrize("has_advice", [True, False])
def test_the_disk_begins_to_write_before_a_file_is_whole(
    has_advice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system takes such advice; each byte once, and in large parts."""
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(safetensors_file, "CHUNK", 1000)
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    if has_advice:
        monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: begun.append((start, length)), False)
        monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    chunks = [bytes([i]) * 300 for i in range(11)]
    assert write_file(tmp_path / "file", chunks) == digest_of(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)
    assert begun == ([(0, 1200), (1200, 1200)] if has_advice else [])
