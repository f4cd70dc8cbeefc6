"""Runs that are told to stop, or killed: what they say, what they keep, and that they go on to the same weights."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Zygote, assert_same, only_run, prepare, saved

from moekit.training.run.metrics_log import read_metrics

OFTEN = ["trainer.val_check_interval=4", "trainer.limit_val_batches=1", "--no-compare"]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(prepare(tmp_path_factory.mktemp("faults")))
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def uninterrupted(zygote: Zygote) -> Path:
    """40 steps."""
    done = zygote("train", "tiny.yaml", "trainer.max_steps=40", *OFTEN, "--out", "whole")
    assert done.code == 0, done.said
    return only_run(zygote.cwd / "whole")


def resume(zygote: Zygote, run: Path) -> None:
    done = zygote("train", "--resume", run, "trainer.max_steps=40", *OFTEN)
    assert done.code == 0, done.said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_stop_a_run_saves_and_goes_on_to_the_same_weights(
    zygote: Zygote, uninterrupted: Path, number: signal.Signals, code: int
) -> None:
    out = zygote.cwd / number.name
    told = [["step ", 0.05, number]]
    done = zygote("train", "tiny.yaml", "trainer.max_steps=100000", *OFTEN, "--out", out, send=told)
    run = only_run(out)
    step = saved(run)["global_step"]
    assert done.code == code, done.said
    word = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"stopping after this step ({word} again: at once)" in done.said
    assert f"stopped at step {step}; resume: moekit train --resume {run}" in done.said
    assert "val/loss" in read_metrics(run / "metrics.csv")[step]  # the last step was validated
    assert "Traceback" not in done.said
    if step < 40:  # else the machine was slow to send it
        resume(zygote, run)
        assert_same(run, uninterrupted)


def test_a_second_sigterm_ends_it_at_once(zygote: Zygote) -> None:
    """As when a step, or its validation, takes longer than one can wait: here, longer than the test."""
    out = zygote.cwd / "twice"
    slow = ["trainer.accumulate_grad_batches=1000000", "trainer.val_check_interval=4000000", "--no-compare"]
    told = [["folder", 0.3, signal.SIGTERM], ["stopping after this step", 0.2, signal.SIGTERM]]
    done = zygote("train", "tiny.yaml", "trainer.max_steps=40", *slow, "--out", out, send=told)
    assert done.code == -signal.SIGTERM and done.seconds < 20, done.said


def test_killed_a_run_goes_on_to_the_same_weights(zygote: Zygote, uninterrupted: Path) -> None:
    """In the middle of a save: see ``test_faults_killed`` for every other moment."""
    out = zygote.cwd / "killed"
    done = zygote("train", "tiny.yaml", "trainer.max_steps=40", *OFTEN, "--out", out, kill_at=[40, 0.0])
    assert done.code == -signal.SIGKILL, done.said
    run = only_run(out)
    resume(zygote, run)
    assert_same(run, uninterrupted)
    rows, expected = (read_metrics(each / "metrics.csv") for each in (run, uninterrupted))
    assert {step: row["train/loss"] for step, row in rows.items()} == {
        step: row["train/loss"] for step, row in expected.items()
    }


def test_a_full_disk_is_told_and_harms_no_checkpoint(zygote: Zygote, uninterrupted: Path) -> None:
    """Files may not grow past what a checkpoint needs: what ``write`` then says is what it says of a full disk."""
    out = zygote.cwd / "limited"
    done = zygote("train", "tiny.yaml", "trainer.max_steps=8", *OFTEN, "--out", out)
    run = only_run(out)
    before = saved(run)["global_step"]
    done = zygote("train", "--resume", run, "trainer.max_steps=40", *OFTEN, file_limit=40_000)
    assert done.code == 2 and "File too large" in done.said and "Traceback" not in done.said, done.said
    assert "checkpoints" in done.said  # where
    assert saved(run)["global_step"] == before == 8
    resume(zygote, run)
    assert_same(run, uninterrupted)


def test_steps_left_out_are_told_at_the_end(zygote: Zygote) -> None:
    """A rate of 1e30 makes weights that overflow: the first step is taken, all others are left out."""
    out = zygote.cwd / "non_finite"
    rate = ["optimizer.lr=1e30", "trainer.max_steps=5", "--no-compare", "--out", out]
    done = zygote("train", "tiny.yaml", *rate)
    assert done.code == 2 and "error: step 2: the loss is" in done.said
    assert "backwards from: " in done.said and "no weight was touched in this step" in done.said
    done = zygote("train", "tiny.yaml", "non_finite=skip", *rate, "--name", "skipping")
    assert done.code == 0, done.said
    assert "step 5 skipped (4 so far): the loss is" in done.said
    assert "4 of 5 steps, whose loss or gradients were not finite" in " ".join(done.said.split())
    (summary,) = out.glob("skipping/*/summary.json")
    assert json.loads(summary.read_text())["skipped"] == 4
    assert read_metrics(summary.with_name("metrics.csv"))[5]["train/skipped"] == 4
