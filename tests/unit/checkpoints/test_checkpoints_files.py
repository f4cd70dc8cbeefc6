"""Pointers, retention, recovery and removal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import save

from moekit.checkpoints.files import Retention, last_of, recover, remove, step_name, steps_in, target_of, write_pointer
from moekit.checkpoints.reading import is_intact


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, best=best, keep=2)
    assert list(steps_in(tmp_path)) == [2, 4, 5]
    assert (last_of(tmp_path), target_of(tmp_path, "best")) == (tmp_path / step_name(5), tmp_path / step_name(2))
    save(tmp_path, 3, keep=2, after=2)  # resumed from an older checkpoint: later steps belong to no run any more
    assert list(steps_in(tmp_path)) == [2, 3]
    save(tmp_path, 10**8, keep=1)
    assert list(steps_in(tmp_path)) == [2, 10**8]


def test_recovery_removes_half_written_files_and_no_checkpoint(tmp_path: Path) -> None:
    """Also none newer than ``last``: the run may have been resumed from an older one, and have saved nothing since."""
    recover(tmp_path / "none")
    save(tmp_path, 1)
    save(tmp_path, 2, keep=5)
    (tmp_path / ".tmp-new-step-00000003").mkdir()
    (tmp_path / ".last.tmp").write_text("half")
    (tmp_path / "own").mkdir()
    write_pointer(tmp_path, "last", step_name(1))
    recover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {step_name(1), step_name(2), "last", "own"}


def test_recovery_puts_a_checkpoint_back_that_was_about_to_be_replaced(tmp_path: Path) -> None:
    """A kill between the two moves; after both, the old one is removed."""
    path = save(tmp_path, 1)
    path.rename(tmp_path / f".tmp-old-{path.name}")
    recover(tmp_path)
    assert is_intact(path)
    shutil.copytree(path, tmp_path / f".tmp-old-{path.name}")
    recover(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "last"} and is_intact(path)


def test_a_complete_run_keeps_later_checkpoints_when_it_prunes(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=9)
    Retention(keep=1).prune(tmp_path / step_name(3))
    assert list(steps_in(tmp_path)) == [3, 4]


@pytest.mark.parametrize("text", ["", "step-00000009\n", "../step-00000001\n", "/etc\n", "\xff", "x" * 500])
def test_a_pointer_to_nothing_has_no_target(text: str, tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1)
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "last").write_text(text, encoding="latin-1")
    assert last_of(tmp_path / "checkpoints") is None


def test_an_interrupted_removal_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)

    def half(path: Path, **options: Any) -> None:
        if path.is_dir():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt("half removed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt, match="half removed"):
            remove(path)
    assert not steps_in(tmp_path)
    recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_failed_removal_raises_only_if_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()

    def fail(*args: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "rename", fail)
    remove(tmp_path / "x", strict=False)
    with pytest.raises(OSError, match="no"):
        remove(tmp_path / "x")
