"""Trees as JSON and named tensors, and the manifest. Whole trees are saved and read in ``test_checkpoints_reading``."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_ranks import as_rank
from torch.distributed.tensor import DTensor, Shard

from moekit.checkpoints import format as checkpoint_format
from moekit.checkpoints.format import Encoded, Manifest, decode
from moekit.checkpoints.safetensors_file import Digest, write_file
from moekit.errors import CheckpointError
from moekit.parallel.mesh import world_mesh
from moekit.shards import TensorShard


def test_only_equal_views_of_one_memory_are_written_once() -> None:
    """A view that is transposed, of another dtype, or begins elsewhere is a tensor of its own; so is another shard."""
    w = torch.arange(4.0).reshape(2, 2)
    views = {"w": w, "again": w[:], "turned": w.t(), "bits": w.view(torch.int32), "first": w[0], "second": w[1]}
    assert list(Encoded(views).shards) == ["w", "turned", "bits", "first", "second"]
    regions = [((4,), (0,)), ((4,), (2,)), ((6,), (0,)), ((4,), (0,))]
    found = Encoded({"abcd"[i]: TensorShard("", *region, w[0]) for i, region in enumerate(regions)})
    assert list(found.shards) == ["a", "b", "c"] and found.sharded == {"a", "b", "c"}


def test_tensors_are_named_by_their_path_and_names_are_unique() -> None:
    w = torch.randn(3, 4)
    model = {"a.w": w, "tied": w, "a": {"w": w * 4}}
    found = Encoded({"model": model, "list": [torch.zeros(2)], "model.a": {"w": w * 2}})
    assert list(found.shards) == ["model.a.w", "model.a.w#2", "list.0", "model.a.w#3"]
    decoded = decode(json.loads(json.dumps(found.plain)), lambda name: found.shards[name].tensor)
    assert decoded["model"]["tied"] is decoded["model"]["a.w"] and torch.equal(decoded["model"]["a"]["w"], w * 4)
    assert torch.equal(decoded["model.a"]["w"], w * 2) and not found.sharded


def test_of_a_distributed_tensor_each_rank_encodes_its_shard() -> None:
    with as_rank(2):
        w = DTensor.from_local(torch.ones(1, 3), world_mesh("cpu"), [Shard(0)], run_check=False)
        found = Encoded({"w": w})
    assert found.sharded == {"w"}
    shard = found.shards["w"]
    assert (shard.global_shape, shard.offset, shard.sizes) == ((4, 3), (2, 0), (1, 3))


def test_a_value_that_cannot_be_encoded_is_rejected_with_its_path() -> None:
    with pytest.raises(CheckpointError, match=r"cannot save a pathlib.*Path at callbacks\.mine\.0\n  expected plain"):
        Encoded({"callbacks": {"mine": [Path("x")]}})


def test_a_key_of_a_newer_format_is_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"'\$new' is not in this format"):
        decode({"$new": 1}, str)


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_manifest_names_no_file_outside_of_its_directory(name: str, tmp_path: Path) -> None:
    """Also if its own checksum is right, which a forger can compute."""
    Manifest(1, {name: Digest("00", 1)}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)


def test_checksums_are_computed_in_parallel_and_the_first_mismatch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First in the manifest, even if a later one is found sooner."""
    names = [f"part-{i}" for i in range(6)]
    files = {name: write_file(tmp_path / name, [name.encode() * 99]) for name in names}
    for name in ("part-2", "part-3"):
        (tmp_path / name).write_bytes(name.upper().encode() * 99)
    two, later, real = threading.Barrier(2), threading.Event(), checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        if file.name in names[:2]:
            two.wait(timeout=200)  # until both are being hashed
        elif file.name == "part-2":
            assert later.wait(timeout=200)
        found = real(file)
        if file.name == "part-3":
            later.set()
        return found

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    manifest = checkpoint_format.Manifest(1, files)
    manifest.verify(tmp_path, names[:2])
    with pytest.raises(CheckpointError, match="part-2 is damaged: its sha256 does not match the manifest"):
        manifest.verify(tmp_path, names[2:])
