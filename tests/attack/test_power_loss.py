"""A run whose power fails at any moment resumes from the last acknowledged checkpoint, or from a newer whole one.

The file operations of saves, pointers, prunes and logs are recorded, and every kind of state that POSIX allows after
each of them is built and opened. A checkpoint is acknowledged once the call that saves it has returned.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk import Disk, recording, write_tree

from moekit.checkpoints.files import Retention, last_of, recover, step_name, step_of, steps_in, write_pointer
from moekit.checkpoints.reading import is_intact, open_checkpoint
from moekit.checkpoints.writing import save_tree
from moekit.files import discard, replace_file
from moekit.tables import read_tables, table_files
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import RunLog, salvage_metrics
from moekit_report.routing.writing import save_tables


class Run:
    """Saves and logs as a run does, of tiny tensors: five saves, then back by three and two more; ``rounds`` times."""

    def __init__(self, root: Path, rounds: int) -> None:
        self.root = root
        self.rounds = rounds
        self.acknowledged = 0
        self.has_spec = False

    def __call__(self) -> None:
        folder = RunFolder.claim(self.root, "tiny")
        with folder.locked():
            folder.create()
            replace_file(folder.spec, lambda path: path.write_text("schema: 1\n"))
            self.has_spec = True
            log = RunLog(folder.metrics, 0)
            for first in range(2, 2 + 8 * self.rounds, 8):
                for step in range(first, first + 10, 2):
                    self.save(folder, step, log)
                recover(folder.checkpoints)
                self.acknowledged = first + 2  # the user chose an older one
                write_pointer(folder.checkpoints, "last", step_name(first + 2))
                log = RunLog(folder.metrics, first + 2)
                for path in table_files(folder.routing):
                    if step_of(path.with_suffix("")) > first + 2:
                        discard(path)
                for step in (first + 4, first + 6):
                    self.save(folder, step, log)

    def save(self, folder: RunFolder, step: int, log: RunLog) -> None:
        log.log_metrics({"train/loss": step / 10}, step)
        log.save()
        save_tables(folder.routing / f"step-{step:08d}.npz", {"experts": {"step": np.array([step])}})
        before = last_of(folder.checkpoints)
        retention = Retention(best=step % 6 == 2, keep=4, after=before and step_of(before))
        tree = {"w": torch.full((3,), float(step)), "global_step": step}
        save_tree(tree, folder.checkpoints / step_name(step), step=step, retention=retention)
        self.acknowledged = step


def check(root: Path, acknowledged: int, has_spec: bool) -> None:
    """Opens a state as commands do, and as a resumed run does."""
    folders = list((root / "tiny").iterdir()) if (root / "tiny").is_dir() else []
    if not has_spec and not (folders and (folders[0] / "spec.yaml").is_file()):
        return
    (path,) = folders
    folder = RunFolder(path)
    assert folder.spec.read_text() == "schema: 1\n"
    if not acknowledged and folder.last is None:
        return
    last = folder.checkpoint()
    opened = open_checkpoint(last)
    opened.verify()
    step = opened.plain["global_step"]
    assert step >= acknowledged and opened.plain["w"].whole().tolist() == [step] * 3
    before = {each for each in steps_in(folder.checkpoints).values() if is_intact(each)}
    recover(folder.checkpoints)
    folder.create()
    after = {each for each in steps_in(folder.checkpoints).values() if is_intact(each)}
    assert before <= after and not list(folder.checkpoints.glob(".*")) and not list(path.rglob(".*.tmp"))
    best = folder.best
    assert best is None or is_intact(best)
    (rows, damage), tables = salvage_metrics(folder.metrics), read_tables(folder.routing)
    assert damage == "" and max(rows) >= acknowledged and max(tables["experts"]["step"]) >= acknowledged
    save_tree({"global_step": step + 1}, folder.checkpoints / step_name(step + 1), retention=Retention(after=step))
    assert folder.last == folder.checkpoints / step_name(step + 1)
    left = {step_of(each) for each in folder.checkpoints.iterdir()} - {-1}
    assert left == {step + 1} | ({step_of(folder.best)} if folder.best else set())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of small trees are written."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize(("rounds", "most"), [(1, 1), pytest.param(9, 40, marks=pytest.mark.slow)])
def test_a_run_survives_a_power_cut_at_any_moment(
    memory: Path, rounds: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = memory / "disk"
    root.mkdir()
    disk, rng, run = Disk(root), random.Random(most), Run(root, rounds)
    states: dict[str, tuple[Any, int, bool, str]] = {}
    seen: Counter[str] = Counter()

    def cut(what: str) -> None:
        seen[what.split()[0]] += 1
        for tree in disk.states(rng, most):
            states.setdefault(repr((tree, run.acknowledged)), (tree, run.acknowledged, run.has_spec, what))

    with recording(disk, cut):
        run()
    assert {"open", "mkdir", "rename", "fsync", "os.remove", "os.rmdir"} <= set(seen)
    assert len(states) > (5000 if most > 1 else 180), len(states)
    monkeypatch.setattr("os.fsync", lambda _: None)  # from here on, power does not fail
    for i, (tree, acknowledged, has_spec, what) in enumerate(states.values()):
        state = memory / str(i)
        write_tree(state, tree)
        try:
            check(state, acknowledged, has_spec)
        except Exception as error:
            raise AssertionError(f"after {what!r}, {acknowledged} acknowledged: {state}") from error
        shutil.rmtree(state)
