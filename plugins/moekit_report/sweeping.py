"""A sweep: runs of one recipe over a grid of options and seeds, in parallel, resumable after a kill.

Everything that a sweep knows is in its folder: ``sweep.json`` says what is to be run, each trial is an ordinary run in
a folder of its own, and a trial is complete once its run has written its results. So the same command continues a sweep
wherever it was ended, and folders that were copied from other machines count.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from moekit.errors import MoekitError
from moekit.files import write_if_changed
from moekit.run import Run
from moekit.training.run.folder import RunFolder, started

PLAN = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run.

    Attributes:
        recipe: its name, or a file.
        overrides: of every trial.
        grid: options with their values, as text.
        seeds: seeds 0 to seeds - 1.
        sample: how many points of the grid to take at random; 0 for all.
    """

    recipe: str
    overrides: tuple[str, ...]
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    seeds: int
    sample: int = 0

    def trials(self) -> list[Trial]:
        """Every trial, seed by seed, so that a sweep that is ended has whole seeds."""
        points = list(product(*(values for _, values in self.grid)))
        if self.sample:
            points = sorted(random.Random(0).sample(points, min(self.sample, len(points))), key=points.index)
        keys = [key for key, _ in self.grid]
        chosen = [tuple(f"{key}={value}" for key, value in zip(keys, point, strict=True)) for point in points]
        return [Trial(options=options, seed=seed) for seed in range(self.seeds) for options in chosen]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its point of the grid, as overrides, and its seed."""

    options: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder: ``top_k=4,lr=0.01,seed=0``."""
        short = [
            option.partition("=")[0].rpartition(".")[2] + "=" + option.partition("=")[2] for option in self.options
        ]
        return re.sub(r"[^\w.=,+-]", "_", ",".join([*short, f"seed={self.seed}"]))


def parse(recipe: str, given: Sequence[str], *, seeds: int, sample: int = 0) -> Sweep:
    """A sweep from the arguments of a command: ``key=a,b,c`` is an axis of the grid, ``key=a`` an option of all.

    A comma inside brackets or braces does not divide.

    Raises:
        MoekitError: an argument has no ``=``, there is no axis and only one seed, two trials would share a name, or a
            number is out of range.
    """
    if seeds < 1 or sample < 0:
        raise MoekitError(f"--seeds {seeds}, --random {sample}: expected 1 seed or more, and 0 points or more")
    grid, fixed = [], []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MoekitError(f"'{text}' is not an option\n  expected key=value, or key=a,b,c for an axis of the grid")
        values = split(value)
        if len(values) > 1:
            grid.append((key, tuple(dict.fromkeys(values))))
        else:
            fixed.append(text)
    if any(key == "seed" for key, _ in grid) or any(text.startswith("seed=") for text in fixed):
        raise MoekitError("a sweep counts seeds itself\n  expected --seeds N instead of seed=...")
    sweep = Sweep(recipe=recipe, overrides=tuple(fixed), grid=tuple(grid), seeds=seeds, sample=sample)
    trials = sweep.trials()
    if len(trials) < 2:
        raise MoekitError("the sweep has one run\n  expected key=a,b,c for an axis of the grid, or --seeds 3")
    if len({trial.name for trial in trials}) < len(trials):
        raise MoekitError("two runs of the sweep would have the same name\n  expected options whose last names differ")
    return sweep


def split(value: str) -> list[str]:
    """The parts of a value between commas that are in no bracket, brace or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def plan(folder: Path, sweep: Sweep) -> None:
    """Writes what is to be run; or checks that it is what the folder has.

    Raises:
        MoekitError: the folder has another sweep.
    """
    path, text = folder / PLAN, json.dumps(asdict(sweep), indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise MoekitError(
            f"{folder} has another sweep\n  see {path}; expected the same arguments, or another folder: --name NAME"
        )
    write_if_changed(path, text)


def run_of(folder: Path, trial: Trial) -> Run | None:
    """The latest run of a trial; None before it has begun."""
    found = [spec.parent for spec in (folder / trial.name).glob("*/spec.yaml")]
    return Run(RunFolder(max(found, key=started))) if found else None


def is_complete(run: Run | None) -> bool:
    """Whether a trial has its results."""
    return run is not None and run.is_complete


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
        running: the processes of trials that run now.
        failed: the exit codes of trials that failed.
    """

    def __init__(self, folder: Path, sweep: Sweep, *, jobs: int, threads: int) -> None:
        self.folder = folder
        self.sweep = sweep
        self.jobs = jobs
        self.threads = threads
        self.running: dict[Trial, subprocess.Popen[bytes]] = {}
        self.failed: dict[Trial, int] = {}

    def run(self, on_change: Callable[[], object], every: float = 0.2) -> None:
        """Runs what is not complete. A trial that fails does not stop the others.

        Args:
            on_change: called now and then.
            every: seconds between looks at the processes.
        """
        waiting: Iterator[Trial] = (
            trial for trial in self.sweep.trials() if not is_complete(run_of(self.folder, trial))
        )
        is_more = True
        try:
            while is_more or self.running:
                while is_more and len(self.running) < self.jobs:
                    trial = next(waiting, None)
                    if trial is None:
                        is_more = False
                    else:
                        self.running[trial] = self._start(trial)
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
