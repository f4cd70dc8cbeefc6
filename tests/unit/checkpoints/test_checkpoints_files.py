"""Pointers, retention, recovery and removal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import save

from moekit.checkpoints.files import last_of, recover, remove, step_name, steps_in, target_of, write_pointer


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, best=best, keep=2)
    assert list(steps_in(tmp_path)) == [2, 4, 5]
    assert (last_of(tmp_path), target_of(tmp_path, "best")) == (tmp_path / step_name(5), tmp_path / step_name(2))
    save(tmp_path, 3, keep=2)  # resumed from an older checkpoint: later steps belong to no run any more
    assert list(steps_in(tmp_path)) == [2, 3]
    save(tmp_path, 10**8, keep=1)
    assert list(steps_in(tmp_path)) == [2, 10**8]


def test_recovery_keeps_checkpoints_that_may_be_the_only_ones(tmp_path: Path) -> None:
    recover(tmp_path / "none")
    save(tmp_path, 1)
    save(tmp_path, 2, keep=5)
    (tmp_path / "last").unlink()
    (tmp_path / ".tmp-new-step-00000003").mkdir()
    (tmp_path / "own").mkdir()
    recover(tmp_path)
    assert list(steps_in(tmp_path)) == [1, 2] and (tmp_path / "own").is_dir()
    assert not (tmp_path / ".tmp-new-step-00000003").exists()
    write_pointer(tmp_path, "last", step_name(1))
    recover(tmp_path, resumed_from=tmp_path / step_name(2))
    assert list(steps_in(tmp_path)) == [1, 2]
    recover(tmp_path)
    assert list(steps_in(tmp_path)) == [1]


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
