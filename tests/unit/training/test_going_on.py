"""Going on from a checkpoint: how often its files are read, by which process, and what damage does."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
from moekit.training.run.folder import RunFolder
from moekit.training.run.resume import read_checkpoint, verify_checkpoints
from moekit.training.run.train import train

Make = Callable[..., dict[str, Any]]
STATE, TENSORS = "state.json", "tensors-00001-of-00001.safetensors"


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was read whole for its sum."""
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


def test_a_run_that_goes_on_sums_every_file_once(
    recipe: Make, tmp_path: Path, summed: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where one is damaged, be it of the dense model's run, nothing is changed or even built."""
    monkeypatch.setattr("moekit.training.run.train.draw_plots", lambda *_: [])
    options = {"accelerator": "cpu", "limit_val_batches": 1, "enable_progress_bar": False}

    def run(steps: int, resume: RunFolder | None = None, with_dense: bool = False) -> None:
        spec = load(recipe(compare={"lr": 1e-2}, trainer={**options, "max_steps": steps}))
        train(spec, root=tmp_path, resume=resume, with_dense=with_dense, console=Console(quiet=True))

    run(1)
    assert not summed
    (path,) = (tmp_path / "tiny").iterdir()
    folder = RunFolder(path)
    run(2, folder)
    assert summed == {f"{step_name(1)}/{name}": 1 for name in (STATE, TENSORS)}
    shutil.copytree(folder.checkpoints, folder.dense.checkpoints)
    damage(folder.dense.checkpoints / step_name(2) / TENSORS)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    monkeypatch.setattr("moekit.training.run.train.prepare", lambda *_, **__: pytest.fail("it was prepared"))
    with pytest.raises(CheckpointError, match=f"dense/checkpoints/{step_name(2)}/{TENSORS} is damaged: its sha256"):
        run(3, folder, with_dense=True)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_another_process_sums_what_it_reads(saved: Path, summed: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started by Lightning here, which hands the first one's word on."""
    checkpoint = read_checkpoint(saved)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "is_rank_zero", lambda: False)
        patch.setenv("MOEKIT_CHECKPOINT", "whole")
        verify_checkpoints([checkpoint])
    assert summed == {f"{saved.name}/{STATE}": 1}
    damage(saved / TENSORS)
    with pytest.raises(CheckpointError, match=f"{TENSORS} is damaged: its sha256"):
        checkpoint.plain["state_dict"]["w"].whole()


def test_others_wait_longer_for_more_bytes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr("moekit.training.run.resume.decide_on_rank_zero", lambda *_, timeout: waits.append(timeout))
    monkeypatch.setattr("moekit.training.run.resume.SLOWEST", 1.0)
    checkpoint = read_checkpoint(saved)
    size = sum((saved / name).stat().st_size for name in (STATE, TENSORS))
    verify_checkpoints([])
    verify_checkpoints([checkpoint])
    verify_checkpoints([checkpoint, checkpoint])
    assert [(wait - launch.RANK_ZERO_TIMEOUT).total_seconds() for wait in waits] == [size, 2 * size]


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_open_is_read_until_something_is_saved(
    saved: Path, summed: Counter[str], sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path that is written otherwise, too; another one's checkpoint is opened."""
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
    assert weights(saved) == weights(Path(saved.name)) == list(range(6)) and summed == once
    other = saved.with_name(step_name(2))
    save_tree({"state_dict": {"w": torch.ones(1)}}, other)
    assert weights(other) == [1.0]
    io.save_checkpoint({"state_dict": {"w": torch.zeros(1)}}, saved)
    assert weights(saved) == [0.0]


def test_the_strategy_names_the_plugin_that_it_needs_to_read_checkpoints(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"TorchCheckpointIO cannot read .*\n  expected .*AtomicCheckpointIO\(\)"):
        ShardedStrategy(Sharded()).load_checkpoint(saved)
