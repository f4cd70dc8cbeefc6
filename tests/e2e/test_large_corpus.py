"""A corpus larger than memory may be: how much memory training on it takes, and that a killed run resumes exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from large_corpus_run import peak, write

from moekit.registry import build
from moekit.training.data import StepLoader
from moekit_data.text_files import TextFiles

SCRIPT = Path(__file__).with_name("large_corpus_run.py")
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads a process's memory as Linux says")


def make(folder: Path) -> TextFiles:
    return TextFiles(path=str(folder), seq=64, batch=16, processes=1)


@LINUX
def test_sixty_megabytes_more_of_text_take_less_than_a_third_of_that_in_memory(tmp_path: Path) -> None:
    """Read, tokenised and sampled until every page of the tokens was in memory once.

    Both texts fill several segments. The first text of a process takes up to 15 MB more than the same text later.
    """
    write(tmp_path / "first", 1)
    write(tmp_path / "small", 20)
    write(tmp_path / "large", 80)
    used = []
    for folder in ("first", "small", "large"):
        Path("/proc/self/clear_refs").write_text("5")  # forget the former peak
        before = peak()
        data = build(make(tmp_path / folder))
        data.prepare()
        loader = iter(StepLoader(data, seed=1))
        for _ in range(1200):
            next(loader)
        used.append(peak() - before)
    assert used[2] - used[1] < 20, used


def test_a_loader_in_another_process_continues_with_the_same_batches(tmp_path: Path) -> None:
    """From the cache, as after a kill: the data is built anew, and reads no text."""
    write(tmp_path / "text", 1)

    def take(loader: StepLoader, count: int) -> list[torch.Tensor]:
        batches = iter(loader)
        return [next(batches).inputs for _ in range(count)]

    whole = take(StepLoader(ready(make(tmp_path / "text")), seed=3, accumulate=2), 12)
    first = StepLoader(ready(make(tmp_path / "text")), seed=3, accumulate=2)
    take(first, 5)
    then = StepLoader(ready(make(tmp_path / "text")), seed=3, accumulate=2)
    then.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(take(then, 7), whole[5:], strict=True))


def ready(spec: TextFiles):  # type: ignore[no-untyped-def]
    data = build(spec)
    data.prepare()
    return data


@LINUX
@pytest.mark.slow  # writes 2 GB of text and as much of tokens: minutes
def test_two_gigabytes_train_within_400_megabytes_more_and_resume_exactly_after_a_kill(tmp_path: Path) -> None:
    environment = os.environ | {"MOEKIT_CACHE": str(tmp_path / "cache")}

    def run(*arguments: object, code: int = 0) -> float:
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        peaks = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("peak ")]
        return float(peaks[0]) if peaks else 0.0

    def noted(name: str) -> dict[str, str]:
        return dict(line.split() for line in (tmp_path / name).read_text().splitlines())

    for name, megabytes in (("small", 2), ("large", 2000)):
        run("corpus", name, "--megabytes", megabytes)
    steps = "--steps", 1000
    small = run("train", "small", "--out", "runs/small", "--batches", "small.txt", *steps)
    large = run("train", "large", "--out", "runs/large", "--batches", "whole.txt", *steps)
    assert large - small < 400, (small, large)
    killed = "--out", "runs/killed", "--batches", "killed.txt", "--kill", 333
    run("train", "large", *killed, *steps, code=-signal.SIGKILL)
    (folder,) = (tmp_path / "runs" / "killed").glob("*/*")
    resumed = run("resume", folder, "--batches", "resumed.txt", *steps)
    assert resumed - small < 400, (small, resumed)
    whole, before, after = noted("whole.txt"), noted("killed.txt"), noted("resumed.txt")
    assert len(whole) == 1000 and len(before) == 333 and 1000 - 333 <= len(after) < 1000
    assert before.items() <= whole.items() and after.items() <= whole.items()
