"""What counts as one tensor of a tree, how tensors are named, and which are pieces. Whole trees: ``test_saving``."""

from __future__ import annotations

import torch
from fake_ranks import as_rank
from torch.distributed.tensor import DTensor, Shard

from moekit.checkpoints.format import encode
from moekit.parallel.mesh import world_mesh
from moekit.shards.shard import TensorShard


def test_only_what_is_the_same_of_one_memory_is_written_once() -> None:
    """A view that is turned, of another type, or begins elsewhere is a tensor of its own; so is a piece elsewhere."""
    w = torch.arange(4.0).reshape(2, 2)
    views = {"w": w, "again": w[:], "turned": w.t(), "bits": w.view(torch.int32), "first": w[0], "second": w[1]}
    assert list(encode(views).boxes) == ["w", "turned", "bits", "first", "second"]
    places = [((4,), (0,)), ((4,), (2,)), ((6,), (0,)), ((4,), (0,))]
    pieces = encode({"abcd"[i]: TensorShard("", *place, w[0]) for i, place in enumerate(places)})
    assert list(pieces.boxes) == ["a", "b", "c"] and pieces.pieces == {"a", "b", "c"}


def test_three_tensors_of_one_path_have_three_names() -> None:
    tree = {"a": {"b": {"c": torch.zeros(1)}, "b.c": torch.ones(1)}, "a.b": {"c": torch.ones(1) * 2}}
    found = encode(tree)
    assert {name: float(box.tensor) for name, box in found.boxes.items()} == {"a.b.c": 0, "a.b.c#2": 1, "a.b.c#3": 2}


def test_of_a_distributed_tensor_each_rank_saves_its_piece() -> None:
    with as_rank(2):
        w = DTensor.from_local(torch.ones(1, 3), world_mesh("cpu"), [Shard(0)], run_check=False)
        found = encode({"w": w})
    assert found.pieces == {"w"}
    assert (found.boxes["w"].global_shape, found.boxes["w"].offset, found.boxes["w"].sizes) == ((4, 3), (2, 0), (1, 3))
