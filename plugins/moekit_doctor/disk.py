"""The folder of all runs: can it be written, does a write reach the disk, and how long does that take."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from moekit.files import replace_file
from moekit_doctor.finding import Finding

AREA = "runs folder"
SLOW_WRITE = 0.1
"""Seconds of a small write that are worth a note: a run makes several for each checkpoint."""

LITTLE = 1e9
"""Bytes of free disk below which checkpoints may not fit."""


def disk(runs: Path) -> Iterator[Finding]:
    """Writes a small file as a run does: filled, flushed, moved to its name, and its folder flushed.

    Nothing is left there, and no folder is made.

    Args:
        runs: the folder of all runs, which may not exist yet.
    """
    existing = next((path for path in (runs.absolute(), *runs.absolute().parents) if path.exists()), Path("/"))
    yield Finding(AREA, "folder", f"{runs}{'' if runs.exists() else ', not made yet'}")
    if not existing.is_dir():
        yield Finding(AREA, "write", f"{existing} is not a folder", "fault", "name another: --out DIR")
        return
    free = shutil.disk_usage(existing).free
    little = free < LITTLE
    advice = "checkpoints.keep=1 keeps one; or another disk: --out DIR" if little else ""
    yield Finding(AREA, "free", f"{free / 1e9:.1f} GB", "note" if little else "ok", advice)
    try:
        with tempfile.TemporaryDirectory(prefix=".moekit-doctor-", dir=existing) as folder:
            start = time.perf_counter()
            replace_file(Path(folder) / "file", lambda partial: partial.write_bytes(bytes(4096)))
            seconds = time.perf_counter() - start
    except OSError as error:
        yield Finding(
            AREA, "write", f"{existing}: {error.strerror or error}", "fault", "name another folder: --out DIR"
        )
        return
    slow = seconds > SLOW_WRITE
    words = f"a file is flushed and moved in {1e3 * seconds:.0f} ms"
    yield Finding(AREA, "write", words, "note" if slow else "ok", "a local disk is faster: --out DIR" if slow else "")
