"""One process of several is told to stop, or hangs: all end with the same step, or give up when their time is over."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from faults import only_run, prepare, saved
from ranks import run
from test_faults_lost_rank import NOBODY, SCRIPT, batches

from moekit.training.run.metrics_log import read_metrics

STEPS, TOLD = 10, 7  # saved after every third
WITHIN = 120  # s, from the last micro-batch to the end of all processes, on a machine that is busy
TIMEOUT = 60  # s, for one process to wait for another: longer than starting one takes on a machine that is busy
LIGHTNING = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHARED = f"trainer.strategy={{use: sharded, ep: 2, timeout: {TIMEOUT}}}"


def train(
    tmp_path: Path, start: tuple[str, ...], name: str, told: tuple[int, int, int], *options: str
) -> tuple[int, str, float]:
    """The exit code of two processes, what they said, and how long after the last micro-batch they had all ended."""
    command = [
        *start, str(SCRIPT), str(tmp_path / f"{name}-batches"), *map(str, told), "train", *options,
        "trainer.devices=2", "trainer.val_check_interval=3", "trainer.limit_val_batches=1", "--no-compare",
        f"trainer.max_steps={STEPS}", "model.moe.experts.dropout=0", "trainer.deterministic=false",
    ]  # fmt: skip
    done = run(command, timeout=600, cwd=tmp_path)
    ended, said = time.time(), done.stdout + done.stderr
    times = [file.stat().st_mtime for file in (tmp_path / f"{name}-batches").glob("*.txt")]
    assert times, said
    print(f"{name}: from the last micro-batch to the end of all processes: {ended - max(times):.1f} s")
    return done.returncode, said, ended - max(times)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "strategy"), [(LIGHTNING, SHARED), (TORCHRUN, "trainer.strategy=ddp")])
def test_the_second_of_two_is_told_to_stop_and_both_do(tmp_path: Path, start: tuple[str, ...], strategy: str) -> None:
    """Exit code 0 of all: Lightning and ``torchrun`` make anything else of one that of the whole."""
    prepare(tmp_path)
    code, said, _ = train(tmp_path, start, "whole", NOBODY, "tiny.yaml", strategy, "--out", "whole")
    assert code == 0, said
    code, said, seconds = train(
        tmp_path, start, "told", (1, TOLD, signal.SIGTERM), "tiny.yaml", strategy, "--out", "told"
    )
    folder = only_run(tmp_path / "told")
    where = folder.relative_to(tmp_path)
    assert code == 0 and seconds < WITHIN, said
    assert said.count(f"stopped at step {TOLD}; resume: moekit train --resume {where}") == 1 and "Traceback" not in said
    assert saved(folder)["global_step"] == TOLD
    assert "val/loss" in read_metrics(folder / "metrics.csv")[TOLD]  # the last step was validated
    code, said, _ = train(tmp_path, start, "again", NOBODY, "--resume", str(where), strategy)
    assert code == 0, said
    before, after, expected = (batches(tmp_path / f"{name}-batches") for name in ("told", "again", "whole"))
    assert list(before) == list(range(1, TOLD + 1)) and list(after) == list(range(TOLD + 1, STEPS + 1))
    assert before | after == expected
    ours, theirs = (read_metrics(each / "metrics.csv") for each in (folder, only_run(tmp_path / "whole")))
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize(("start", "strategy"), [(LIGHTNING, SHARED), (TORCHRUN, "trainer.strategy=ddp")])
def test_told_after_the_last_step_both_stop_before_what_follows(
    tmp_path: Path, start: tuple[str, ...], strategy: str
) -> None:
    """While it validates the last step: there is no further one to agree in, and the first would go on alone."""
    prepare(tmp_path)
    code, said, seconds = train(
        tmp_path, start, "late", (1, -STEPS, signal.SIGTERM), "tiny.yaml", strategy, "--out", "late"
    )
    folder = only_run(tmp_path / "late")
    where = folder.relative_to(tmp_path)
    assert code == 0 and seconds < WITHIN and "Traceback" not in said, said
    assert said.count(f"stopped at step {STEPS}; resume: moekit train --resume {where}") == 1, said
    assert saved(folder)["global_step"] == STEPS and not (folder / "summary.json").exists()


@pytest.mark.slow
def test_the_second_of_two_hangs_and_the_first_gives_up(tmp_path: Path) -> None:
    """Stopped, and not killed: its connections stay open, so nothing is heard of it. It is not left behind either:
    it holds this test's pipes, and would keep ``run`` waiting.
    """
    prepare(tmp_path)
    code, said, seconds = train(
        tmp_path, LIGHTNING, "hung", (1, TOLD, signal.SIGSTOP), "tiny.yaml", SHARED, "--out", "hung"
    )
    folder = only_run(tmp_path / "hung")
    assert code in (2, -9) and TIMEOUT <= seconds < TIMEOUT + WITHIN, said  # -9: see test_faults_lost_rank
    assert "after step 6 another process of this run is gone, or did not answer in time" in said, said
    assert f"resume: moekit train --resume {folder.relative_to(tmp_path)}" in said and "Traceback" not in said, said
    assert saved(folder)["global_step"] == 6
