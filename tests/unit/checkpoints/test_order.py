"""What is on the disk when: nothing is named before it is whole there, and a removal leaves nothing half there."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moekit.checkpoints import files as retention
from moekit.checkpoints import format as checkpoint_format
from moekit.checkpoints.files import Retention, last_of, recover, remove, step_name, steps_in, target_of
from moekit.checkpoints.reading import is_intact, open_checkpoint
from moekit.checkpoints.writing import save_tree
from moekit.errors import CheckpointError, SaveError


def save(folder: Path, step: int, **options: Any) -> Path:
    path = folder / step_name(step)
    save_tree({"w": torch.full((300,), float(step)), "step": step}, path, step=step, retention=Retention(**options))
    return path


def test_nothing_is_named_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was flushed, and may keep any of the rest: a name without its file, too."""
    folder = tmp_path.stat().st_ino
    on_disk, named, sync = {folder}, [], os.fsync

    def fsync(handle: int) -> None:
        sync(handle)
        on_disk.add(os.fstat(handle).st_ino)

    def moving(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def move(old: Path, new: Path) -> None:
            missing = [p.name for p in (old, *old.glob("*")) if p.stat().st_ino not in on_disk]
            assert not missing, f"{new.name} is to name {missing}"
            assert folder in on_disk, f"{new.name} comes before what it follows is on the disk"
            real(old, new)
            named.append(new.name)
            on_disk.remove(folder)  # until it is flushed again

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, moving(getattr(os, name)))
    for step in (1, 2):
        save(tmp_path, step, best=True, keep=9)
        assert named[-3:] == [step_name(step), "last", "best"] and folder in on_disk
    assert len(named) == 6


def test_a_best_that_cannot_be_named_takes_no_checkpoint_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full between the two pointers: ``last`` names the new one already."""
    save(tmp_path, 1, best=True)
    real = retention.write_pointer

    def full(folder: Path, name: str, target: str) -> None:
        if name == "best":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, name, target)

    monkeypatch.setattr(retention, "write_pointer", full)
    with pytest.raises(SaveError, match="No space left on device"):
        save(tmp_path, 2, best=True)
    last, best = last_of(tmp_path), target_of(tmp_path, "best")
    assert last == tmp_path / step_name(2) and best == tmp_path / step_name(1)
    assert is_intact(last) and is_intact(best)


def test_a_removal_that_breaks_off_leaves_nothing_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)

    def half(path: Path, **options: Any) -> None:
        if path.is_dir():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            remove(path)
    assert not steps_in(tmp_path)
    recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_every_file_is_summed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened, compared as a whole, read: however a checkpoint is used."""
    path, summed, real = save(tmp_path, 1), [], checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        summed.append(file.name)
        return real(file)

    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    checkpoint = open_checkpoint(path)
    assert summed == ["state.json"]
    checkpoint.verify()
    checkpoint.whole()
    checkpoint.verify()
    assert sorted(summed) == ["state.json", "tensors-00001-of-00001.safetensors"]


def test_files_are_summed_side_by_side_and_the_first_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its place in the manifest, though a later one is found sooner."""
    names = [f"part-{i}" for i in range(6)]
    files = {name: checkpoint_format.write_file(tmp_path / name, name.encode() * 99) for name in names}
    for name in ("part-2", "part-3"):
        (tmp_path / name).write_bytes(name.upper().encode() * 99)
    two, later, real = threading.Barrier(2), threading.Event(), checkpoint_format.digest_of

    def digest_of(file: Path) -> Any:
        if file.name in names[:2]:
            two.wait(timeout=20)  # until both are being summed
        elif file.name == "part-2":
            assert later.wait(timeout=20)
        found = real(file)
        if file.name == "part-3":
            later.set()
        return found

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(checkpoint_format, "digest_of", digest_of)
    whole = checkpoint_format.Manifest(1, files)
    whole.check_sums(tmp_path, names[:2])
    with pytest.raises(CheckpointError, match="part-2 is damaged: its sha256 is not the one it was written with"):
        whole.check_sums(tmp_path, names[2:])


def test_views_of_one_memory_are_tensors_of_their_own(tmp_path: Path) -> None:
    """Of the same shape and stride, they differ in nothing but where they begin."""
    w = torch.arange(6.0).reshape(2, 3)
    save_tree({"a": w[0], "b": w[1]}, tmp_path / "c")
    saved = open_checkpoint(tmp_path / "c").whole()
    assert saved["a"].tolist() == [0.0, 1.0, 2.0] and saved["b"].tolist() == [3.0, 4.0, 5.0]
