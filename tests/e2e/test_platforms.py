"""A run on a system that lacks what Windows lacks: flushes of directories, file locks, SIGHUP, SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

import moekit
from moekit import files
from moekit.training.callbacks import interrupt


def test_a_run_is_trained_saved_and_resumed_without_what_windows_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: no test ran on Windows."""
    opened = os.open

    def refuse_directories(path: str, *rest: int, **of_rmtree: int | None) -> int:
        if os.path.isdir(path) and not of_rmtree:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *rest, **of_rmtree)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(os, "open", refuse_directories)
    monkeypatch.setattr(interrupt, "NAMES", {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"})
    small = ["model.dim=16", "data.megabytes=0.1", "data.seq=32", "data.batch=2", "trainer.accelerator=cpu"]
    run = moekit.train("base/language_model", ["trainer.max_steps=2", *small], out=tmp_path, compare=False, quiet=True)
    again = moekit.train(resume=run.path, overrides=["trainer.max_steps=3"], compare=False, quiet=True)
    assert again.path == run.path and again.metrics["step"][-1] == 3
