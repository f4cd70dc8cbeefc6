"""Any split of a tensor is read as any other: boxes, stretches of memory, files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from moekit.checkpoints.reading import Checkpoint, open_checkpoint
from moekit.checkpoints.safetensors_file import DTYPES, TensorFile, bytes_of, digest_of, runs, write_tensors
from moekit.checkpoints.writing import SMALL, Ranks, Save, begin, make_plan, publish, save_tree, seal, write
from moekit.errors import CheckpointError
from moekit.shards.shard import TensorShard, fill_shards, intersection, slices_of, tiling_error, unsharded

Dims = tuple[int, ...]
Split = list[tuple[Dims, Dims]]


@st.composite
def splits(draw: Any, shape: Dims) -> Split:
    """A tiling of a tensor: boxes cut in two at random places, in random order."""
    boxes: Split = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if math.prod(shape) else 0):
        i = draw(st.integers(0, len(boxes) - 1))
        offset, sizes = boxes[i]
        d = draw(st.integers(0, max(0, len(shape) - 1)))
        if not shape or sizes[d] < 2:
            continue
        at = draw(st.integers(1, sizes[d] - 1))
        boxes[i] = (offset, (*sizes[:d], at, *sizes[d + 1 :]))
        boxes.append(((*offset[:d], offset[d] + at, *offset[d + 1 :]), (*sizes[:d], sizes[d] - at, *sizes[d + 1 :])))
    return draw(st.permutations(boxes))  # type: ignore[no-any-return]


@st.composite
def two_splits(draw: Any) -> tuple[Dims, Split, Split]:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    return shape, draw(splits(shape)), draw(splits(shape))


def numbered(shape: Dims) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def bits(tensor: Tensor) -> bytes:
    return bytes(bytes_of(tensor.contiguous()))


class Talk(Ranks):
    """Ranks in one process: what the others say is known beforehand."""

    def __init__(self, rank: int, world: int, said: list[str] | None = None) -> None:
        self.rank, self.world, self.said, self.told = rank, world, said, ""
        self.group = None

    def gather(self, text: str) -> list[str]:
        self.told = text
        return self.said if self.said is not None else [text if r == self.rank else "{}" for r in range(self.world)]


def save_split(path: Path, trees: list[dict[str, TensorShard]]) -> None:
    """Writes one checkpoint as the ranks of ``trees`` would, each its tree of pieces, one rank after the other."""
    plain = begin({name: numbered(box.global_shape) for name, box in trees[0].items()}, path, 3, None).plain
    world, asked = len(trees), []
    for rank, tree in enumerate(trees):
        ask = Talk(rank, world)
        try:
            make_plan(tree, frozenset(tree), ask)
        except CheckpointError:
            pass  # alone, it has not all pieces
        asked.append(ask.told)
    files, saves = {}, []
    for rank, tree in enumerate(trees):
        plan = make_plan(tree, frozenset(tree), Talk(rank, world, asked))
        save = Save(path, 3, plain, plan, Ranks(), None)
        files |= write(save)
        saves.append(save)
    seal(saves[0], files)
    publish(saves[0])


def dealt(shape: Dims, split: Split, ranks: int) -> list[dict[str, TensorShard]]:
    """A piece for each rank; those beyond the pieces hold an empty one."""
    whole, out = numbered(shape), []
    for i in range(max(ranks, len(split))):
        offset, sizes = split[i] if i < len(split) else ((0,) * len(shape), (0, *shape[1:]) if shape else ())
        piece = whole[slices_of(offset, sizes)] if i < len(split) or shape else whole
        out.append({"w": TensorShard("w", shape, offset, piece)})
    return out


@settings(max_examples=150, deadline=None)
@given(two_splits(), st.integers(1, 4))
def test_any_split_is_read_as_any_other(tmp_path_factory: Any, shapes: tuple[Dims, Split, Split], ranks: int) -> None:
    shape, written, read = shapes
    path = tmp_path_factory.mktemp("split") / "step-00000003"
    save_split(path, dealt(shape, written, ranks))
    handle = open_checkpoint(path).plain["w"]
    assert handle.shape == shape and torch.equal(handle.whole(), numbered(shape))
    for offset, sizes in read:
        assert torch.equal(handle.read(offset, sizes), numbered(shape)[slices_of(offset, sizes)])


@settings(max_examples=150, deadline=None)
@given(two_splits())
def test_stretches_of_memory_are_the_slice(shapes: tuple[Dims, Split, Split]) -> None:
    shape, split, _ = shapes
    flat = numbered(shape).reshape(-1)
    for offset, sizes in split:
        stretches = list(runs(shape, offset, sizes))
        got = torch.cat([flat[start : start + n] for start, n in stretches]) if stretches else flat[:0]
        assert torch.equal(got.reshape(sizes), numbered(shape)[slices_of(offset, sizes)])
        if sizes == shape and math.prod(shape):
            assert len(stretches) == 1


@settings(max_examples=150, deadline=None)
@given(two_splits(), st.data())
def test_a_split_that_is_none_is_found_out(shapes: tuple[Dims, Split, Split], data: st.DataObject) -> None:
    shape, split, _ = shapes
    assert tiling_error(shape, [box for box in split if math.prod(box[1])]) == ""
    if math.prod(shape):
        i = data.draw(st.integers(0, len(split) - 1))
        assert "the pieces hold" in tiling_error(shape, split[:i] + split[i + 1 :])
        assert "two pieces hold" in tiling_error(shape, [*split, split[i]])


@settings(max_examples=100, deadline=None)
@given(two_splits())
def test_boxes_meet_where_their_elements_do(shapes: tuple[Dims, Split, Split]) -> None:
    shape, one, other = shapes
    for a, b in ((a, b) for a in one for b in other):
        marks = torch.zeros(shape, dtype=torch.int64)
        marks[slices_of(*a)] += 1
        marks[slices_of(*b)] += 1
        common = intersection(*a, *b)
        assert int((marks == 2).sum()) == (0 if common is None else math.prod(common[1]))
        assert common is None or bool((marks[slices_of(*common)] == 2).all())


def test_boxes_lie_inside_their_tensor_and_are_filled_in_place() -> None:
    with pytest.raises(ValueError, match=r"w: a box of \(2, 3\) at \(3, 0\) is not inside \(4, 3\)"):
        TensorShard("w", (4, 3), (3, 0), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="is not inside"):
        TensorShard("w", (4, 3), (0,), torch.zeros(2))
    target = torch.zeros(4, 3)
    boxes = [TensorShard("w", (4, 3), (2, 0), target[2:]), TensorShard("v", (9,), (0,), torch.zeros(0))]
    fill_shards(boxes, lambda name, offset, sizes: torch.full(sizes, float(offset[0])))
    assert target.tolist() == [[0.0] * 3] * 2 + [[2.0] * 3] * 2


def test_pieces_of_different_tensors_are_refused(tmp_path: Path) -> None:
    told = [json.dumps({"w": ["F32", [4], [2 * r], [2]]}) for r in range(2)]
    told[1] = told[1].replace("F32", "F64")
    with pytest.raises(CheckpointError, match="cannot save w: ranks hold pieces of different tensors"):
        make_plan({"w": TensorShard("w", (4,), (0,), torch.zeros(2))}, frozenset("w"), Talk(0, 2, told))
    with pytest.raises(CheckpointError, match=r"cannot save w \[4\]: the pieces hold 2 of 4 elements"):
        make_plan({"w": TensorShard("w", (4,), (0,), torch.zeros(2))}, frozenset("w"), Talk(0, 1))
    with pytest.raises(
        CheckpointError, match=r"cannot save w: the file format has no name for tensors of torch.complex"
    ):
        make_plan({"w": unsharded("w", torch.zeros(2, dtype=torch.complex128))}, frozenset(), Ranks())


def test_what_several_hold_is_written_once_and_the_work_is_shared() -> None:
    """Four ranks, two of which hold the same rows: each writes a fourth of what there is."""
    half = SMALL + 2
    tree = [{n: TensorShard(n, (4, half), (r // 2 * 2, 0), torch.zeros(2, half)) for n in "abcd"} for r in range(4)]
    told = [json.dumps({n: ["F32", b.global_shape, b.offset, b.sizes] for n, b in t.items()}) for t in tree]
    plans = [make_plan(tree[r], frozenset("abcd"), Talk(r, 4, told)) for r in range(4)]
    assert all(plan.table == plans[0].table for plan in plans)
    assert [sum(box.tensor.numel() for box in plan.mine.values()) for plan in plans] == [4 * half] * 4
    parts = [part for entry in plans[0].table.values() for part in entry["parts"]]
    assert len(parts) == 8 and {part["file"] for part in parts} == {plan.file for plan in plans}


def test_small_pieces_that_all_hold_are_in_one_file(tmp_path: Path) -> None:
    """So that a rank that goes on reads its own file and that one, and takes the sums of no other."""
    rows, biases = 4, [f"bias{i}" for i in range(9)]
    shards = [{"w": TensorShard("w", (rows, 1 << 10), (r, 0), torch.zeros(1, 1 << 10))} for r in range(rows)]
    trees = [shard | {n: unsharded(n, torch.zeros(8)) for n in biases} for shard in shards]
    save_split(tmp_path / "step-00000003", trees)
    saved = open_checkpoint(tmp_path / "step-00000003").plain
    assert {part.file[:13] for name in biases for part in saved[name].parts} == {"tensors-00001"}
    assert [part.file[:13] for part in saved["w"].parts] == [f"tensors-0000{r + 1}" for r in range(rows)]


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_is_written_as_the_formats_own_package_reads_it(name: str, tmp_path: Path) -> None:
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
    assert all(entry.start % entry.dtype.itemsize == 0 for entry in ours.entries.values())  # to be mapped into memory
    assert bits(ours.read("a.b", (1, 2, 0), (2, 1, 1))) == bits(tensor[1:, 2:3, :1])
    assert ours.metadata == {"format": "pt", "note": "é"}


def test_what_the_formats_own_package_writes_is_read(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(4, 6), "y": torch.arange(5), "z": torch.randn(3).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors")
    ours = TensorFile(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(ours.read(name, (0,) * tensor.dim(), tuple(tensor.shape)), tensor)
    assert torch.equal(ours.read("x", (1, 2), (2, 3)), tensors["x"][1:3, 2:5])


def test_bad_files_and_slices_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.zeros(4, 4)})
    good = path.read_bytes()
    for bad in (b"", b"12345678", good[:40], good[:-1], b"\xff" * 8 + good[8:], good.replace(b'"F32"', b'"F16"')):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"t\.safetensors is no whole safetensors file"):
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
    with pytest.raises(CheckpointError, match="ends within x: it was cut short"):
        file.read("x", (0, 0), (4, 4))


def test_a_slice_reads_only_its_bytes(tmp_path: Path) -> None:
    save_tree({"w": torch.zeros(64, 1024)}, tmp_path / "c")
    checkpoint: Checkpoint = open_checkpoint(tmp_path / "c")
    assert checkpoint.plain["w"].read((3, 0), (1, 1024)).shape == (1, 1024)
    assert list(runs((64, 1024), (3, 0), (1, 1024))) == [(3 * 1024, 1024)]
    with pytest.raises(CheckpointError, match=r"w \[64, 1024\] has no \(2, 1024\) at \(63, 0\)"):
        checkpoint.plain["w"].read((63, 0), (2, 1024))
