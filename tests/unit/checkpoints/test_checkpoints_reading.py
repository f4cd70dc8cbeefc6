"""What is saved is read back, in any split; damage is detected and named; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import TENSORS, exchanged, flip, numbers, save
from hypothesis import given, settings
from hypothesis import strategies as st
from region_splits import Dims, Split, numbered, two_splits
from torch import Tensor

import moekit
from moekit.checkpoints import format as checkpoint_format
from moekit.checkpoints.format import Manifest
from moekit.checkpoints.reading import is_checkpoint, is_intact, open_checkpoint
from moekit.checkpoints.safetensors_file import digest_of
from moekit.checkpoints.writing import Save, assign_shards, begin, publish, save_tree, seal, write
from moekit.errors import CheckpointError
from moekit.shards import TensorShard, local_shard, slices_of


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4),
    st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.rand(shape)),
    st.integers(-5, 5).map(torch.tensor),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=3), st.integers(0, 9), st.sampled_from(["$tensor", "$pairs", "a.b", "a"]), st.booleans()
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple), st.dictionaries(KEYS, t, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(TREES)
def test_a_tree_is_read_as_it_was_saved(tmp_path_factory: Any, tree: Any) -> None:
    path = tmp_path_factory.mktemp("tree") / "c"
    save_tree(tree, path)
    assert equal(open_checkpoint(path).whole(), tree)


def test_tied_tensors_and_views_are_read_as_they_were_saved(tmp_path: Path) -> None:
    w = torch.randn(3, 4)
    tree = {"model": {"a.w": w, "tied": w, "t": w.t(), "row": w[1], "other row": w[2]}, "model.a": {"w": w * 2}}
    save_tree(tree, tmp_path / "c")
    assert equal(open_checkpoint(tmp_path / "c").whole(), tree)


def test_the_files_of_a_checkpoint_and_the_attributes_of_an_open_one(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert {p.name for p in path.iterdir()} == {TENSORS, "state.json", "manifest.json"}
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000003", "last"}
    assert (tmp_path / "last").read_text() == "step-00000003\n"
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["moekit"], manifest["step"]) == (1, moekit.__version__, 3)
    checkpoint = open_checkpoint(tmp_path / "last")
    assert checkpoint.path == path and checkpoint.manifest.step == 3 and checkpoint.plain["step"] == 3
    handle = checkpoint.plain["w"]
    assert (handle.shape, handle.dtype) == (torch.Size([300]), torch.float32)
    assert handle.read((7,), (2,)).tolist() == [3.0, 3.0]
    with pytest.raises(CheckpointError, match=r"w \[300\] has no \(2,\) at \(299,\)"):
        handle.read((299,), (2,))
    checkpoint.verify()
    assert is_checkpoint(path) and is_checkpoint(tmp_path / "last") and not is_checkpoint(tmp_path)


# ---- shards ----------------------------------------------------------------------------------------------------------


def save_shards(path: Path, trees: list[dict[str, TensorShard]]) -> None:
    """Writes one checkpoint as the ranks of ``trees`` would, one rank after another."""
    plain = begin({name: numbered(shard.global_shape) for name, shard in trees[0].items()}, path, 3, None).plain
    sharded = frozenset(trees[0])
    files, saves = {}, []
    for tree, ranks in zip(trees, exchanged(trees, sharded), strict=True):
        saves.append(Save(path, 3, plain, *assign_shards(tree, sharded, ranks), ranks, None))
        files |= write(saves[-1])
    seal(saves[0], files)
    publish(saves[0])


def distributed(shape: Dims, split: Split, ranks: int) -> list[dict[str, TensorShard]]:
    """A shard for each rank; ranks beyond the split hold an empty one."""
    whole, out = numbered(shape), []
    for i in range(max(ranks, len(split))):
        offset, sizes = split[i] if i < len(split) else ((0,) * len(shape), (0, *shape[1:]) if shape else ())
        held = whole[slices_of(offset, sizes)] if i < len(split) or shape else whole
        out.append({"w": TensorShard("w", shape, offset, held)})
    return out


@settings(max_examples=150, deadline=None)
@given(two_splits(), st.integers(1, 4))
def test_any_split_is_read_as_any_other(tmp_path_factory: Any, shapes: tuple[Dims, Split, Split], ranks: int) -> None:
    shape, written, read = shapes
    path = tmp_path_factory.mktemp("split") / "step-00000003"
    save_shards(path, distributed(shape, written, ranks))
    handle = open_checkpoint(path).plain["w"]
    assert handle.shape == shape and torch.equal(handle.whole(), numbered(shape))
    for offset, sizes in read:
        assert torch.equal(handle.read(offset, sizes), numbered(shape)[slices_of(offset, sizes)])


def test_small_replicated_tensors_are_in_one_file(tmp_path: Path) -> None:
    """So a rank that resumes reads its own file and that one, and verifies no other."""
    rows, biases = 4, [f"bias{i}" for i in range(9)]
    shards = [{"w": TensorShard("w", (rows, 1 << 10), (r, 0), torch.zeros(1, 1 << 10))} for r in range(rows)]
    trees = [shard | {n: local_shard(n, torch.zeros(8)) for n in biases} for shard in shards]
    save_shards(tmp_path / "step-00000003", trees)
    saved = open_checkpoint(tmp_path / "step-00000003").plain
    assert {shard.file[:13] for name in biases for shard in saved[name].shards} == {"tensors-00001"}
    assert [shard.file[:13] for shard in saved["w"].shards] == [f"tensors-0000{r + 1}" for r in range(rows)]


# ---- damage ----------------------------------------------------------------------------------------------------------


def truncate(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit of a tensor": (TENSORS, lambda p: flip(p, -5), "its sha256 does not match"),
    "a bit of a header": (TENSORS, lambda p: flip(p, 20), "its sha256 does not match"),
    "the end of the tensors": (TENSORS, lambda p: truncate(p, 900), "it has 900 bytes,"),
    "the tensors": (TENSORS, Path.unlink, "is missing, but the manifest"),
    "a bit of the plain values": ("state.json", lambda p: flip(p, 30), "its sha256 does not match"),
    "the plain values": ("state.json", Path.unlink, "is missing, but the manifest"),
    "the manifest": ("manifest.json", Path.unlink, "is missing or unreadable: No such file"),
    "a bit of the manifest": ("manifest.json", lambda p: flip(p, -40), "is damaged"),
    "the end of the manifest": ("manifest.json", lambda p: truncate(p, 50), "is damaged"),
    "another format": (
        "manifest.json", lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 9')), "format 9, wri"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_an_error_names_the_damaged_file_and_the_intact_checkpoints(what: str, tmp_path: Path) -> None:
    name, damage, words = DAMAGES[what]
    first, second, last = (save(tmp_path, step, keep=3) for step in (1, 2, 3))
    flip(second / TENSORS, -1)
    damage(last / name)
    assert not is_intact(last)
    intact = f"\n  intact checkpoints in this folder (pass one instead of the run):\n    {first}"
    with pytest.raises(CheckpointError, match=f"(?s)^{last / name}.*{words}.*{re.escape(intact)}$"):
        open_checkpoint(last).whole()
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(last).verify()
    flip(first / "state.json", 3)
    with pytest.raises(CheckpointError, match="no other checkpoint in this folder is intact"):
        open_checkpoint(last).whole()


def test_an_error_lists_the_newest_intact_checkpoint_first(tmp_path: Path) -> None:
    first, second, last = (save(tmp_path, step, keep=3) for step in (1, 2, 3))
    flip(last / TENSORS, -1)
    with pytest.raises(CheckpointError, match=f":\n    {second}\n    {first}$"):
        open_checkpoint(last).verify()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_detected(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bit")
    save_tree({"w": torch.arange(6.0), "n": [1, 2.5]}, folder / "c", step=1)
    path = data.draw(st.sampled_from(sorted((folder / "c").iterdir())))
    flip(path, data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7)))
    with pytest.raises(CheckpointError, match=path.name):
        open_checkpoint(folder / "c").verify()


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000001\n  a run writes its first after"):
        open_checkpoint(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        open_checkpoint(tmp_path)


def test_a_manifest_that_does_not_list_a_needed_file_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = dict(Manifest.read(path).files)
    Manifest(1, {"state.json": files["state.json"]}).write(path)
    with pytest.raises(
        CheckpointError, match=rf"state\.json is damaged: .*w is stored in {TENSORS}, which is not in the"
    ):
        open_checkpoint(path)
    Manifest(1, {TENSORS: files[TENSORS]}).write(path)
    with pytest.raises(CheckpointError, match=r"state\.json is missing from the manifest"):
        open_checkpoint(path)


def test_every_file_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a checkpoint is verified and read."""
    path, verified, real = save(tmp_path, 1), [], checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        verified.append(file.name)
        return real(file)

    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    checkpoint = open_checkpoint(path)
    assert verified == ["state.json"]
    checkpoint.verify()
    checkpoint.whole()
    checkpoint.verify()
    assert sorted(verified) == ["state.json", TENSORS]


# ---- nothing is unpickled --------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_planted_pickle_is_rejected_and_not_run(tmp_path: Path) -> None:
    """In place of any file, with a manifest that lists it."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": Evil(mark)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"is a file, but a checkpoint of moekit is a directory"):
        open_checkpoint(tmp_path / "evil.ckpt")
    for payload in ((tmp_path / "evil.ckpt").read_bytes(), pickle.dumps(Evil(mark))):
        for name in (TENSORS, "state.json", "manifest.json"):
            path = save(tmp_path, 1)
            (path / name).write_bytes(payload)
            if name != "manifest.json":
                files = {**Manifest.read(path).files, name: digest_of(path / name)}
                Manifest(1, files).write(path)
            with pytest.raises(CheckpointError, match=name):
                open_checkpoint(path).whole()
    assert not mark.exists()


def test_neither_saving_nor_reading_uses_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("pickle was used")

    for module, names in (
        (pickle, ("Unpickler", "Pickler", "load", "loads", "dump", "dumps")),
        (torch, ("load", "save")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, fail)
    path = save(tmp_path, 1)
    assert torch.equal(open_checkpoint(path).whole()["w"], numbers(1)["w"])
    with pytest.raises(AssertionError, match="pickle was used"):
        torch.load(path)
