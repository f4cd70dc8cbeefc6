"""One rank is killed, stopped by a signal, or hangs: all ranks end with the same step, and the run resumes exactly."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import run
from tiny_runs import only_run, prepare, saved

from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.train import LOST_RANK

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("interrupted_rank.py")
STEPS, INTERRUPTED = 10, 7  # saved after every third
WITHIN = 120  # s, from the last micro-batch to the end of all processes, on a machine that is busy; see docs/faults.md
TIMEOUT = 60  # s, for one rank to wait for another: longer than starting one takes on a machine that is busy
LIGHTNING = (sys.executable,)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SHARDED = f"trainer.strategy={{use: sharded, ep: 2, timeout: {TIMEOUT}}}"
LONG_TIMEOUT = "trainer.strategy={use: sharded, ep: 2, timeout: 120}"
TWO_RANKS = pytest.mark.parametrize(("start", "strategy"), [(LIGHTNING, SHARDED), (TORCHRUN, "trainer.strategy=ddp")])
Interruption = tuple[int, int, int]
NO_RANK: Interruption = (-1, 0, 0)


@dataclass(frozen=True)
class Ended:
    """How all ranks ended: the command's exit code, the output, and s from the last micro-batch to the last end."""

    code: int
    output: str
    seconds: float


@dataclass(frozen=True)
class Trainer:
    """Trains in a folder that ``prepare`` filled, in ``devices`` ranks, which ``start`` begins."""

    cwd: Path
    devices: int = 2
    strategy: str = SHARDED
    start: tuple[str, ...] = LIGHTNING
    accumulate: int = 1

    def __call__(self, name: str, interruption: Interruption, *options: str) -> Ended:
        """Trains or resumes a run; ``interrupted_rank.py`` explains the interruption."""
        command = [
            *self.start, str(SCRIPT), str(self.cwd / f"{name}-batches"), *map(str, interruption), "train", *options,
            f"trainer.devices={self.devices}", self.strategy, f"trainer.accumulate_grad_batches={self.accumulate}",
            f"trainer.val_check_interval={3 * self.accumulate}", "trainer.limit_val_batches=1", "--no-compare",
            f"trainer.max_steps={STEPS}", "model.moe.experts.dropout=0", "trainer.deterministic=false",
        ]  # fmt: skip
        done = run(command, timeout=600, cwd=self.cwd)
        ended, output = time.time(), done.stdout + done.stderr
        times = [file.stat().st_mtime for file in (self.cwd / f"{name}-batches").glob("*.txt")]
        assert times, output
        print(f"{name}: from the last micro-batch to the end of all processes: {ended - max(times):.1f} s")
        return Ended(done.returncode, output, ended - max(times))

    def new(self, name: str, interruption: Interruption) -> tuple[Ended, Path]:
        """A new run, and its folder."""
        ended = self(name, interruption, "tiny.yaml", "--out", name)
        return ended, only_run(self.cwd / name)


def batches(folder: Path) -> dict[int, list[str]]:
    """The hashes of each step's micro-batches, in any order."""
    seen: dict[int, list[str]] = {}
    for file in folder.glob("*.txt"):
        for line in file.read_text().splitlines():
            step, digest = line.split()
            seen.setdefault(int(step), []).append(digest)
    return {step: sorted(digests) for step, digests in seen.items()}


def assert_resumed(cwd: Path, interrupted: Path, uninterrupted: Path, last: int, micro_batches: int) -> None:
    """Weights that are kept have seen each batch of the uninterrupted run once, with the same loss."""
    before, after, expected = (batches(cwd / f"{name}-batches") for name in ("interrupted", "resumed", "whole"))
    assert list(expected) == list(range(1, STEPS + 1)) and all(len(each) == micro_batches for each in expected.values())
    assert list(after) == list(range(last + 1, STEPS + 1))
    assert {step: before[step] for step in range(1, last + 1)} | after == expected
    ours, theirs = (read_metrics(each / "metrics.csv") for each in (interrupted, uninterrupted))
    for step in range(1, STEPS + 1):
        assert ours[step]["train/loss"] == pytest.approx(theirs[step]["train/loss"], rel=1e-5), step


def assert_names_lost_rank(ended: Ended, folder: Path, cwd: Path) -> None:
    # -9: Lightning, which watches the processes that it started, was quicker than rank 0's own end.
    assert ended.code in (2, -9) and "Traceback" not in ended.output, ended.output
    assert LOST_RANK in ended.output
    assert f": moekit train --resume {folder.relative_to(cwd)}" in ended.output
    assert saved(folder)["global_step"] == 6


def test_after_one_of_four_ranks_is_killed_two_resume_the_run(tmp_path: Path) -> None:
    prepare(tmp_path)
    whole, expected = Trainer(tmp_path, 1, "trainer.strategy=null", accumulate=4).new("whole", NO_RANK)
    assert whole.code == 0, whole.output
    killed, folder = Trainer(tmp_path, 4, LONG_TIMEOUT).new("interrupted", (2, INTERRUPTED, signal.SIGKILL))
    assert_names_lost_rank(killed, folder, tmp_path)
    assert killed.seconds < WITHIN / 2  # noticed at once, not after the timeout
    resumed = Trainer(tmp_path, 2, accumulate=2)("resumed", NO_RANK, "--resume", str(folder.relative_to(tmp_path)))
    assert resumed.code == 0, resumed.output
    assert_resumed(tmp_path, folder, expected, last=6, micro_batches=4)


@TWO_RANKS
def test_a_signal_to_rank_1_stops_both_ranks_after_the_same_step(
    tmp_path: Path, start: tuple[str, ...], strategy: str
) -> None:
    """Exit code 0 of all: Lightning and ``torchrun`` end all ranks with another code if one rank has it."""
    prepare(tmp_path)
    trainer = Trainer(tmp_path, 2, strategy, start)
    whole, expected = trainer.new("whole", NO_RANK)
    assert whole.code == 0, whole.output
    stopped, folder = trainer.new("interrupted", (1, INTERRUPTED, signal.SIGTERM))
    where = folder.relative_to(tmp_path)
    assert stopped.code == 0 and stopped.seconds < WITHIN and "Traceback" not in stopped.output, stopped.output
    assert stopped.output.count(f"stopped at step {INTERRUPTED}; ") == 1, stopped.output
    assert stopped.output.count(f": moekit train --resume {where}") == 1, stopped.output
    assert saved(folder)["global_step"] == INTERRUPTED
    assert "val/loss" not in read_metrics(folder / "metrics.csv")[INTERRUPTED]  # it was saved at once
    assert list(batches(tmp_path / "interrupted-batches")) == list(range(1, INTERRUPTED + 1))
    resumed = trainer("resumed", NO_RANK, "--resume", str(where))
    assert resumed.code == 0, resumed.output
    assert_resumed(tmp_path, folder, expected, last=INTERRUPTED, micro_batches=2)


@TWO_RANKS
def test_a_signal_during_the_last_validation_stops_both_ranks_before_the_summary(
    tmp_path: Path, start: tuple[str, ...], strategy: str
) -> None:
    """After the last step there is no further one to agree in, and rank 0 would write the summary alone.

    Resumed, both ranks make up for the validation.
    """
    prepare(tmp_path)
    trainer = Trainer(tmp_path, 2, strategy, start)
    stopped, folder = trainer.new("late", (1, -STEPS, signal.SIGTERM))
    assert stopped.code == 0 and stopped.seconds < WITHIN and "Traceback" not in stopped.output, stopped.output
    assert stopped.output.count(f"stopped at step {STEPS}; ") == 1, stopped.output
    assert stopped.output.count(f": moekit train --resume {folder.relative_to(tmp_path)}") == 1, stopped.output
    assert saved(folder)["global_step"] == STEPS and not (folder / "summary.json").exists()
    resumed = trainer("late", NO_RANK, "--resume", str(folder.relative_to(tmp_path)))
    assert resumed.code == 0 and (folder / "summary.json").exists(), resumed.output
    assert "val/loss" in read_metrics(folder / "metrics.csv")[STEPS]


@TWO_RANKS
def test_a_signal_before_the_first_step_stops_both_ranks_after_it(
    tmp_path: Path, start: tuple[str, ...], strategy: str
) -> None:
    """Lightning's handler, which is set by then, would send the other rank a tensor that it does not expect."""
    prepare(tmp_path)
    stopped, folder = Trainer(tmp_path, 2, strategy, start).new("early", (1, 0, signal.SIGTERM))
    assert stopped.code == 0 and stopped.seconds < WITHIN and "Traceback" not in stopped.output, stopped.output
    assert stopped.output.count("stopped at step 1; ") == 1, stopped.output
    assert saved(folder)["global_step"] == 1


def test_when_rank_1_hangs_rank_0_ends_after_the_timeout(tmp_path: Path) -> None:
    """Stopped, and not killed: its connections stay open, so rank 0 cannot notice. It must be killed in the end too:
    it holds this test's pipes, and would keep ``run`` waiting.
    """
    prepare(tmp_path)
    ended, folder = Trainer(tmp_path).new("hung", (1, INTERRUPTED, signal.SIGSTOP))
    assert_names_lost_rank(ended, folder, tmp_path)
    assert TIMEOUT <= ended.seconds < TIMEOUT + WITHIN and "after step 6 " in ended.output, ended.output
