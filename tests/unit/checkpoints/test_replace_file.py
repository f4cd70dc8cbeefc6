"""Replacing a file is atomic: a failed or killed write leaves the old file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moekit.checkpoints.files import replace_file


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    replace_file(path, lambda p: p.write_text("old"))

    def fail(p: Path) -> None:
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    code = f"""
import os, signal
from pathlib import Path
from moekit.checkpoints.files import replace_file
replace_file(Path({str(path)!r}), lambda p: p.write_text("old"))
def die(p):
    p.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path({str(path)!r}), die)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    replace_file(path, lambda p: p.write_text("new"))  # what the killed process left behind does no harm
    assert path.read_text() == "new"
