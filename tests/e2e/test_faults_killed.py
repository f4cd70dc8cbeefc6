"""SIGKILL at random moments and at every touch of a checkpoint's files; a disk that is really full; damaged files."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from faults import Zygote, assert_same, only_run, prepare, saved

from moekit.training.run.folder import RunFolder

pytestmark = pytest.mark.slow
OFTEN = ["trainer.val_check_interval=4", "trainer.limit_val_batches=1", "--no-compare"]
LONG, SHORT = 250, 12
KILLS = 10


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(prepare(tmp_path_factory.mktemp("killed")))
    yield zygote
    zygote.close()


def train(zygote: Zygote, steps: int, out: str, *options: str) -> Path:
    done = zygote("train", "tiny.yaml", f"trainer.max_steps={steps}", *OFTEN, *options, "--out", out)
    assert done.code == 0, done.said
    return only_run(zygote.cwd / out)


def test_killed_ten_times_at_random_a_run_ends_with_the_same_weights(zygote: Zygote) -> None:
    """Each time up to 50 ms after a random step began, in training, validation or a save; resumed from what is kept."""
    often = ["trainer.val_check_interval=5"]
    whole = train(zygote, LONG, "whole", *often)
    rng = random.Random(7)
    out, kept = zygote.cwd / "killed", [0]
    argv: list[str | Path] = ["train", "tiny.yaml", "--out", out]
    for _ in range(KILLS):
        moment = [rng.randint(6, 18), rng.uniform(0.0, 0.05)]
        done = zygote(*argv, *OFTEN, *often, f"trainer.max_steps={LONG}", kill_step=moment)
        assert done.code == -signal.SIGKILL, done.said
        argv = ["train", "--resume", only_run(out)]
        kept.append(saved(only_run(out))["global_step"])
    assert all(before < after for before, after in pairwise(kept)) and kept[-1] < LONG, kept
    done = zygote(*argv, *OFTEN, *often, f"trainer.max_steps={LONG}")
    assert done.code == 0, done.said
    assert_same(only_run(out), whole)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_every_touch_of_a_save_a_run_ends_with_the_same_weights(zygote: Zygote, asynchronous: bool) -> None:
    """From one good checkpoint, at step 4, through the saves at steps 8 and 12; up to 2 ms after each touch."""
    name = f"touch{asynchronous}"
    whole = train(zygote, SHORT, f"{name}-whole")
    first = train(zygote, 4, f"{name}-first")
    go_on = [f"trainer.max_steps={SHORT}", f"checkpoints.asynchronous={str(asynchronous).lower()}", *OFTEN]
    rng = random.Random(8)
    number, killed = 0, 0
    while True:
        number += 1
        run = zygote.cwd / name / "tiny" / str(number)
        shutil.copytree(first, run)
        done = zygote("train", "--resume", run, *go_on, kill_at=[number, rng.choice([0.0, rng.uniform(0, 0.002)])])
        if done.code == 0 and done.touched < number:
            break  # it was not touched as often: all moments have been seen
        killed += done.code == -signal.SIGKILL
        assert done.code in (0, -signal.SIGKILL), done.said  # 0: the killer came too late
        assert saved(run)["global_step"] in (4, 8, 12)
        done = zygote("train", "--resume", run, *go_on)
        assert done.code == 0, done.said
        assert_same(run, whole)
        left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        assert not left  # what a kill leaves behind is gone after the next save
        shutil.rmtree(run)
    assert killed >= 2 * KILLS, (killed, number)


FULL = """
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


def test_a_full_disk_is_told_and_the_last_good_checkpoint_goes_on(zygote: Zygote) -> None:
    """A tmpfs that something else has filled: by root's mount, or in a namespace of its own, where one may."""
    whole = train(zygote, SHORT, "full-whole")
    (zygote.cwd / "disk").mkdir()
    script = ["bash", "-c", FULL.format(python=sys.executable)]
    alone = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0
    command = ["unshare", "-rm", *script] if alone else script
    done = subprocess.run(command, cwd=zygote.cwd, capture_output=True, text=True, check=False, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "No space left on device" in said and "ended with 2" in said and "Traceback" not in said, said
    assert "the last good one is untouched: " in said and "step-00000008" in said
    assert_same(only_run(zygote.cwd / "kept"), whole)


def test_damaged_files_are_refused_by_name(zygote: Zygote) -> None:
    """Each file of the newest checkpoint, cut short, and with one bit changed; moekit names the file, and exits 2."""
    first = train(zygote, 8, "damaged")
    last = RunFolder(first).last
    assert last is not None
    for file in sorted(p for p in last.rglob("*") if p.is_file()):
        good = file.read_bytes()
        flipped = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
        for bad in (good[:-1], flipped):
            file.write_bytes(bad)
            done = zygote("train", "--resume", first, f"trainer.max_steps={SHORT}", *OFTEN)
            assert done.code == 2 and file.name in done.said and "Traceback" not in done.said, (file, done.said)
        file.write_bytes(good)
    done = zygote("train", "--resume", first, f"trainer.max_steps={SHORT}", *OFTEN)
    assert done.code == 0, done.said
