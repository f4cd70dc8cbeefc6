"""Resuming a run: checksums, checkpoints that do not fit, other numbers of micro-batches."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moekit import CheckpointError, load
from moekit.checkpoints import format as checkpoint_format
from moekit.checkpoints.files import step_name
from moekit.checkpoints.format import map_leaves
from moekit.checkpoints.reading import Handle
from moekit.checkpoints.writing import save_tree
from moekit.parallel import launch
from moekit.parallel.strategy import ShardedStrategy
from moekit.spec.sharding import Sharded
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO
from moekit.training.run.folder import LOCK, RunFolder
from moekit.training.run.resume import check_same_model, differences, read_checkpoint, recount, verify_checkpoints
from moekit.training.run.train import train

Make = Callable[..., dict[str, Any]]
STATE, TENSORS = "state.json", "tensors-00001-of-00001.safetensors"


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's checksum was computed."""
    seen, real = Counter[str](), checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        seen[f"{file.parent.name}/{file.name}"] += 1
        return real(file)

    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    return seen


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a run."""
    path = tmp_path / step_name(1)
    tree = {"moekit": {}, "hyper_parameters": {"spec": {}}, "state_dict": {"w": torch.arange(6.0)}, "global_step": 1}
    save_tree(tree, path)
    return path


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def test_resuming_verifies_every_file_once_before_anything_changes(
    recipe: Make, tmp_path: Path, verified: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file is damaged, also of the dense baseline, nothing is built or changed."""
    monkeypatch.setattr("moekit.training.run.train.draw_plots", lambda *_: [])
    options = {"accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}

    def run(steps: int, resume: RunFolder | None = None, with_dense: bool = False) -> None:
        spec = load(recipe(compare={"lr": 1e-2}, trainer={**options, "max_steps": steps}))
        train(spec, root=tmp_path, resume=resume, with_dense=with_dense, console=Console(quiet=True))

    run(1)
    assert not verified
    (path,) = (tmp_path / "tiny").iterdir()
    folder = RunFolder(path)
    run(2, folder)
    assert verified == {f"{step_name(1)}/{name}": 1 for name in (STATE, TENSORS)}
    shutil.copytree(folder.checkpoints, folder.dense.checkpoints)
    damage(folder.dense.checkpoints / step_name(2) / TENSORS)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != LOCK}
    monkeypatch.setattr("moekit.training.run.train.prepare", lambda *_, **__: pytest.fail("it was prepared"))
    with pytest.raises(CheckpointError, match=f"dense/checkpoints/{step_name(2)}/{TENSORS} is damaged: its sha256"):
        run(3, folder, with_dense=True)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != LOCK} == before


def test_other_ranks_verify_only_the_files_that_they_read(
    saved: Path, verified: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process plays a rank that Lightning started, which gets rank 0's result in the environment."""
    checkpoint = read_checkpoint(saved)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "is_rank_zero", lambda: False)
        patch.setenv("MOEKIT_CHECKPOINT", "intact")
        verify_checkpoints([checkpoint])
    assert verified == {f"{saved.name}/{STATE}": 1}
    damage(saved / TENSORS)
    with pytest.raises(CheckpointError, match=f"{TENSORS} is damaged: its sha256"):
        checkpoint.plain["state_dict"]["w"].whole()


def test_other_ranks_wait_longer_for_larger_checkpoints(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr("moekit.training.run.resume.decide_on_rank_zero", lambda *_, timeout: waits.append(timeout))
    monkeypatch.setattr("moekit.training.run.resume.MIN_READ_RATE", 1.0)
    checkpoint = read_checkpoint(saved)
    size = sum((saved / name).stat().st_size for name in (STATE, TENSORS))
    verify_checkpoints([])
    verify_checkpoints([checkpoint])
    verify_checkpoints([checkpoint, checkpoint])
    assert [(wait - launch.RANK_ZERO_TIMEOUT).total_seconds() for wait in waits] == [size, 2 * size]


@pytest.mark.parametrize("sharded", [False, True])
def test_an_open_checkpoint_is_reused_until_the_next_save(
    saved: Path, verified: Counter[str], sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a relative path; another checkpoint is opened anew."""
    opened = read_checkpoint(saved)
    verify_checkpoints([opened])
    io = AtomicCheckpointIO(opened=opened)
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = io
    reader = strategy if sharded else io

    def weights(path: Path) -> list[float]:
        found: list[float] = map_leaves(reader.load_checkpoint(path), Handle.whole, Handle)["state_dict"]["w"].tolist()
        return found

    once = {f"{saved.name}/{name}": 1 for name in (STATE, TENSORS)}
    monkeypatch.chdir(saved.parent)
    assert weights(saved) == weights(Path(saved.name)) == list(range(6)) and verified == once
    other = saved.with_name(step_name(2))
    save_tree({"state_dict": {"w": torch.ones(1)}}, other)
    assert weights(other) == [1.0]
    io.save_checkpoint({"state_dict": {"w": torch.zeros(1)}}, saved)
    assert weights(saved) == [0.0]


def test_the_strategy_names_the_plugin_that_it_needs(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"TorchCheckpointIO cannot read .*\n  expected .*AtomicCheckpointIO\(\)"):
        ShardedStrategy(Sharded()).load_checkpoint(saved)


def test_a_checkpoint_that_is_not_of_a_run_is_rejected(tmp_path: Path) -> None:
    good, other = tmp_path / "step-00000001", tmp_path / "step-00000002"
    save_tree({"moekit": {}, "hyper_parameters": {"spec": {"model": {"use": "decoder"}}}}, good)
    assert "moekit" in read_checkpoint(good).plain
    for tree in ({"state_dict": {}}, {"moekit": {}}, [1]):
        save_tree(tree, other)
        with pytest.raises(CheckpointError, match=r"step-00000002 is not a checkpoint of a moekit run"):
            read_checkpoint(other)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000003"):
        read_checkpoint(tmp_path / "step-00000003")


def test_another_model_is_rejected_with_the_keys_that_differ(tmp_path: Path) -> None:
    saved = {"model": {"dim": 16, "moe": {"top_k": 2}}, "optimizer": {"use": "adamw", "lr": 1}}
    check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "adamw", "lr": 2}})
    with pytest.raises(CheckpointError, match=r"cannot resume from .*a\.ckpt: it holds another model") as caught:
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "model": {"dim": 32, "moe": None}})
    assert str(caught.value).splitlines()[1:] == [
        "  model.dim: 16 in the checkpoint, 32 now",
        "  model.moe: {'top_k': 2} in the checkpoint, None now",
    ]
    with pytest.raises(CheckpointError, match=r"optimizer\.use: 'adamw' in the checkpoint, 'sgd' now"):
        check_same_model(tmp_path / "a.ckpt", saved, {**saved, "optimizer": {"use": "sgd"}})


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.integers(0, 3), lambda t: st.dictionaries(st.sampled_from("abc"), t, max_size=3), max_leaves=8))
def test_a_tree_does_not_differ_from_itself(tree: Any) -> None:
    assert differences(tree, tree) == []
    assert differences({"x": tree}, {"x": tree, "y": 1}) == [("y", None, 1)]


def checkpoint(counts: dict[str, int], accumulate: int) -> dict[str, Any]:
    progress = {part: dict(counts) for part in ("total", "current")}
    return {
        "moekit": {"accumulate": accumulate},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {**progress, "is_last_batch": False}}},
    }


@pytest.mark.parametrize("now", [1, 2, 3, 8])
def test_recounting_keeps_steps_and_converts_micro_batches(now: int) -> None:
    """Five steps of four micro-batches, in every counter."""
    saved = checkpoint({"ready": 20, "started": 20, "processed": 20, "completed": 20}, accumulate=4)
    recount(saved, now)
    assert (
        saved["loops"] == checkpoint(dict.fromkeys(("ready", "started", "processed", "completed"), 5 * now), 4)["loops"]
    )


def test_within_a_step_another_accumulation_is_rejected() -> None:
    saved = checkpoint({"ready": 20, "completed": 19}, accumulate=4)
    before = deepcopy(saved)
    recount(saved, 4)
    assert saved == before
    with pytest.raises(CheckpointError, match=r"a step of 4 micro-batches[\s\S]*expected .*accumulate_grad_batches=4"):
        recount(saved, 2)
