"""The trials of a sweep in parallel processes: each is an ordinary run, begun or resumed from its last checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moekit.run import Run
from moekit.training.run.folder import RunFolder
from moekit_report.search import guided
from moekit_report.sweeping import Sweep, Trial, is_complete, run_of

END = object()


def command(folder: Path, sweep: Sweep, trial: Trial, run: Run | None) -> list[str]:
    """The command that begins a trial, or resumes it from its last checkpoint."""
    moekit = [sys.executable, "-m", "moekit", "train"]
    if run is not None and RunFolder(run.path).last is not None:
        return [*moekit, "--resume", str(run.path), "--no-compare"]
    options = [*sweep.overrides, *trial.options, f"seed={trial.seed}"]
    return [*moekit, sweep.recipe, *options, "--out", str(folder), "--name", trial.name, "--no-compare"]


class Runner:
    """Runs the trials of a sweep in parallel processes, which end with this one.

    Args:
        folder: of the sweep.
        sweep: what is to be run.
        jobs: processes at a time.
        threads: threads of torch in each.

    Attributes:
        known: the trials so far; all of a sweep that is not guided by results.
        running: the processes of trials that run now.
        failed: the exit codes of trials that failed.
    """

    def __init__(self, folder: Path, sweep: Sweep, *, jobs: int, threads: int) -> None:
        self.folder = folder
        self.sweep = sweep
        self.jobs = jobs
        self.threads = threads
        self.known: list[Trial] = [] if sweep.is_guided else sweep.trials()
        self.running: dict[Trial, subprocess.Popen[bytes]] = {}
        self.failed: dict[Trial, int] = {}

    def run(self, on_change: Callable[[], object], every: float = 0.2) -> None:
        """Runs what is not complete. A trial that fails does not stop the others.

        Args:
            on_change: called now and then.
            every: seconds between looks at the processes.
        """
        upcoming, is_more = self._upcoming(), True
        try:
            while is_more or self.running:
                while is_more and len(self.running) < self.jobs:
                    trial = next(upcoming, END)
                    if isinstance(trial, Trial):
                        self.running[trial] = self._start(trial)
                    else:
                        is_more = trial is not END
                        break
                for trial, process in list(self.running.items()):
                    if (code := process.poll()) is not None:
                        del self.running[trial]
                        if code:
                            self.failed[trial] = code
                on_change()
                if self.running:
                    time.sleep(every)
        finally:
            for process in self.running.values():
                process.terminate()  # each saves a checkpoint
            for process in self.running.values():
                process.wait()

    def _upcoming(self) -> Iterator[Trial | None]:
        """The trials to run, in order; None while the next one waits for results of others."""
        trials: Iterator[Trial | None] = iter(self.known)
        if self.sweep.is_guided:
            trials = guided(self.folder, self.sweep, self.jobs, self._is_settled)
        for trial in trials:
            if trial is not None and trial not in self.known:
                self.known.append(trial)
            if trial is None or not self._is_settled(trial):
                yield trial

    def _is_settled(self, trial: Trial) -> bool:
        return trial in self.failed or is_complete(run_of(self.folder, trial))

    def _start(self, trial: Trial) -> subprocess.Popen[bytes]:
        (self.folder / trial.name).mkdir(parents=True, exist_ok=True)
        threads = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with (self.folder / trial.name / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command(self.folder, self.sweep, trial, run_of(self.folder, trial)),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip


def end_with_parent() -> None:
    """Has Linux end this process when its parent ends, however that ends: a trial must not outlive a killed sweep."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
