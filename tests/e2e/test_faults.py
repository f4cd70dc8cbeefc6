"""Runs that are stopped, killed or out of disk: what they print and keep, and that they resume to the same weights.

The slow tests repeat it at every moment: SIGKILL at random and at every touch of a checkpoint's files, a file system
that is really full, and every file of a checkpoint damaged.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_runs import Moekit, assert_same, only_run, prepare, saved, succeeded

from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import read_metrics

KILLS = 10


@pytest.fixture(scope="module")
def moekit(tmp_path_factory: pytest.TempPathFactory) -> Moekit:
    return Moekit(prepare(tmp_path_factory.mktemp("faults")))


@pytest.fixture(scope="module")
def uninterrupted(moekit: Moekit) -> Path:
    """40 steps."""
    succeeded(moekit.train("whole", 40))
    return only_run(moekit.cwd / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_a_run_stopped_by_a_signal_saves_and_resumes_to_the_same_weights(
    moekit: Moekit, uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    out = moekit.cwd / number.name
    done = moekit.train(out, 100_000, send=[["step ", 0.05, number]])
    run = only_run(out)
    step = saved(run)["global_step"]
    assert done.code == code, done.output
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"stopping after this step ({name} again: " in done.output
    assert f"stopped at step {step}; " in done.output and f": moekit train --resume {run}" in done.output
    assert "train/loss" in read_metrics(run / "metrics.csv")[step]
    assert "Traceback" not in done.output
    if step < 40:  # else the machine was slow to send it
        succeeded(moekit.resume(run, 40))
        assert_same(run, uninterrupted)


def test_a_second_sigterm_ends_a_run_at_once(moekit: Moekit) -> None:
    """As when a step, or its validation, takes longer than one can wait: here, longer than the test."""
    slow = ["trainer.accumulate_grad_batches=1000000", "trainer.val_check_interval=4000000"]
    signals = [["folder", 0.3, signal.SIGTERM], ["stopping after this step", 0.2, signal.SIGTERM]]
    done = moekit.train("twice", 40, *slow, send=signals)
    assert done.code == -signal.SIGTERM and done.seconds < 20, done.output


def test_a_run_killed_in_the_middle_of_a_save_resumes_to_the_same_weights(moekit: Moekit, uninterrupted: Path) -> None:
    done = moekit.train("killed", 40, kill_at=[40, 0.0])
    assert done.code == -signal.SIGKILL, done.output
    run = only_run(moekit.cwd / "killed")
    succeeded(moekit.resume(run, 40))
    assert_same(run, uninterrupted)
    losses, expected = (
        {step: row["train/loss"] for step, row in read_metrics(each / "metrics.csv").items()}
        for each in (run, uninterrupted)
    )
    assert losses == expected


def test_a_full_disk_is_reported_and_harms_no_checkpoint(moekit: Moekit, uninterrupted: Path) -> None:
    """Files may not grow to the size of a checkpoint: ``write`` then fails as it does on a full disk."""
    succeeded(moekit.train("limited", 8))
    run = only_run(moekit.cwd / "limited")
    before = saved(run)["global_step"]
    done = moekit.resume(run, 40, file_limit=40_000)
    assert done.code == 2 and "File too large" in done.output and "Traceback" not in done.output, done.output
    assert "checkpoints" in done.output  # where
    assert saved(run)["global_step"] == before == 8
    succeeded(moekit.resume(run, 40))
    assert_same(run, uninterrupted)


def test_pictures_and_a_summary_that_cannot_be_written_are_reported_and_fail_no_run(moekit: Moekit) -> None:
    """Its weights are saved by then. No room for pictures: files may not grow to their size."""
    succeeded(moekit.train("no-room", 8))
    run = only_run(moekit.cwd / "no-room")
    for name in ("loss.png", "load.png", "summary.json"):
        (run / name).unlink()
    (run / "summary.json").mkdir()
    done = moekit.resume(run, 8, file_limit=10_000)
    succeeded(done)
    assert f"cannot write {run / 'loss.png'}: File too large" in done.output
    assert f"cannot write {run / 'summary.json'}: Is a directory" in done.output
    assert "Traceback" not in done.output and not list(run.glob(".*.tmp"))
    (run / "summary.json").rmdir()
    succeeded(moekit.resume(run, 8))
    assert {"loss.png", "load.png", "summary.json"} <= {path.name for path in run.iterdir() if path.is_file()}


def test_skipped_steps_are_reported_as_they_happen_and_at_the_end(moekit: Moekit) -> None:
    """A rate of 1e30 makes weights that overflow: the optimizer takes the first step, all others are skipped."""
    out = moekit.cwd / "non_finite"
    done = moekit.train(out, 5, "optimizer.lr=1e30")
    assert done.code == 2 and "error: step 2: the loss is" in done.output
    assert "backwards from: " in done.output and "no weight was changed in this step" in done.output
    done = moekit.train(out, 5, "non_finite=skip", "optimizer.lr=1e30", "--name", "skipping")
    succeeded(done)
    assert "step 5 " in done.output and "(4 so far): the loss is" in done.output
    assert "4 of 5 steps" in " ".join(done.output.split())
    (summary,) = out.glob("skipping/*/summary.json")
    assert json.loads(summary.read_text())["skipped"] == 4
    assert read_metrics(summary.with_name("metrics.csv"))[5]["train/skipped"] == 4


@pytest.mark.slow
def test_a_run_killed_ten_times_at_random_ends_with_the_same_weights(moekit: Moekit) -> None:
    """Up to 50 ms after a random step began, in training, validation or a save; each time resumed from what is kept."""
    often, steps = "trainer.val_check_interval=5", 250
    succeeded(moekit.train("long", steps, often))
    rng = random.Random(7)
    out, kept = moekit.cwd / "killed-often", [0]
    for i in range(KILLS):
        moment = [rng.randint(6, 18), rng.uniform(0.0, 0.05)]
        if i == 0:
            done = moekit.train(out, steps, often, kill_step=moment)
        else:
            done = moekit.resume(only_run(out), steps, often, kill_step=moment)
        assert done.code == -signal.SIGKILL, done.output
        kept.append(saved(only_run(out))["global_step"])
    assert all(before < after for before, after in pairwise(kept)) and kept[-1] < steps, kept
    succeeded(moekit.resume(only_run(out), steps, often))
    assert_same(only_run(out), only_run(moekit.cwd / "long"))


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_killed_at_any_touch_of_a_save_ends_with_the_same_weights(moekit: Moekit, asynchronous: bool) -> None:
    """From one good checkpoint, at step 4, through the saves at steps 8 and 12; up to 2 ms after each touch."""
    name, save = f"touch{asynchronous}", f"checkpoints.asynchronous={str(asynchronous).lower()}"
    succeeded(moekit.train(f"{name}-whole", 12))
    succeeded(moekit.train(f"{name}-first", 4))
    whole, first = (only_run(moekit.cwd / f"{name}-{which}") for which in ("whole", "first"))
    rng = random.Random(8)
    number, killed = 0, 0
    while True:
        number += 1
        run = moekit.cwd / name / "tiny" / str(number)
        shutil.copytree(first, run)
        done = moekit.resume(run, 12, save, kill_at=[number, rng.choice([0.0, rng.uniform(0, 0.002)])])
        if done.code == 0 and done.touched < number:
            break  # it was not touched as often: all moments have been seen
        killed += done.code == -signal.SIGKILL
        assert done.code in (0, -signal.SIGKILL), done.output  # 0: the killer came too late
        assert saved(run)["global_step"] in (4, 8, 12)
        succeeded(moekit.resume(run, 12, save))
        assert_same(run, whole)
        hidden = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        assert not hidden  # the next save removes what a kill leaves behind
        shutil.rmtree(run)
    assert killed >= 2 * KILLS, (killed, number)


FULL_DISK = """
set -e
mount -t tmpfs -o size=8m moekit-test disk
run() {{ {python} -m moekit train "$@" --no-compare trainer.val_check_interval=4 trainer.limit_val_batches=1; }}
run tiny.yaml trainer.max_steps=8 --out disk
folder=$(echo disk/tiny/*)
cat /dev/zero > disk/filler 2>/dev/null || true
truncate -s -64K disk/filler
set +e
run --resume $folder trainer.max_steps=12; echo "ended with $?"
set -e
rm disk/filler
run --resume $folder trainer.max_steps=12
cp -r disk kept
umount disk
"""


@pytest.mark.slow
def test_after_a_full_disk_a_run_resumes_its_last_good_checkpoint(moekit: Moekit) -> None:
    """A tmpfs that another file has filled: mounted by root, or in a namespace of its own where that is allowed."""
    succeeded(moekit.train("full-whole", 12))
    (moekit.cwd / "disk").mkdir()
    script = ["bash", "-c", FULL_DISK.format(python=sys.executable)]
    alone = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0
    command = ["unshare", "-rm", *script] if alone else script
    done = subprocess.run(command, cwd=moekit.cwd, capture_output=True, text=True, check=False, timeout=500)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "No space left on device" in output and "ended with 2" in output and "Traceback" not in output, output
    assert "the last intact one is untouched: " in output and "step-00000008" in output
    assert_same(only_run(moekit.cwd / "kept"), only_run(moekit.cwd / "full-whole"))


@pytest.mark.slow
def test_a_damaged_file_is_refused_by_name(moekit: Moekit) -> None:
    """Each file of the newest checkpoint, cut short, and with one bit changed."""
    succeeded(moekit.train("damaged", 8))
    run = only_run(moekit.cwd / "damaged")
    last = RunFolder(run).last
    assert last is not None
    for file in sorted(p for p in last.rglob("*") if p.is_file()):
        good = file.read_bytes()
        flipped = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
        for bad in (good[:-1], flipped):
            file.write_bytes(bad)
            done = moekit.resume(run, 12)
            assert done.code == 2 and file.name in done.output and "Traceback" not in done.output, (file, done.output)
        file.write_bytes(good)
    succeeded(moekit.resume(run, 12))
