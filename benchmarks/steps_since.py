"""A training step of this tree against an older commit's: the same recipe in each, rounds interleaved.

python benchmarks/steps_since.py --rounds 9
python benchmarks/steps_since.py --since v0.1.0 --recipe switch
python benchmarks/steps_since.py --since HEAD --freed    # what it costs to return freed memory to the system

``--docs`` also writes the table of docs/benchmarks.md, or with ``--freed`` that of docs/measurements.md. The older tree
is extracted from git into a temporary folder. Each tree trains in a process of its own, through Lightning, on the older
tree's recipe, and waits for the other's steps of a round.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
FOUNDATION = "36134ca"
"""The commit at which the interfaces had been proven on 1991 and DeepSeek-V3, before any work on speed."""

DONE = "steps done:"
"""Begins the lines with which a worker answers; all other output is ignored."""

WARM_UP = 2

OWN_TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
"""The C library's default. moekit leaves a user's own tunables unchanged, and so does not keep freed memory."""


@dataclass
class Worker:
    """A process that trains one tree's model, a few steps at a time.

    Args:
        name: for the table.
        tree: holds ``moekit/``, ``plugins/`` and ``pyproject.toml``.
        options: the recipe and overrides.
        environment: variables in addition to those of this process.
    """

    name: str
    tree: Path
    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rounds: list[float] = []
        self.about = ""

    def start(self, folder: Path, threads: int) -> None:
        """Starts the process, and waits until it has built its model and read its data."""
        path = [describe(self.tree, folder / self.name.replace(" ", "_")), self.tree, self.tree / "plugins"]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), "--work", str(threads), *self.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(map(str, path))},
        )
        self.about = self.answer()

    def steps(self, count: int) -> list[float]:
        """Trains ``count`` steps; returns the seconds of each."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [float(seconds) for seconds in self.answer().split()]

    def answer(self) -> str:
        """The next line that begins with ``DONE``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(DONE):
                return line.removeprefix(DONE).strip()
        raise SystemExit(f"{self.name}: it ended with {self.process.wait()}; its output is above")

    def stop(self) -> None:
        """Kills the process, if it was started."""
        if hasattr(self, "process"):
            self.process.kill()
            self.process.communicate()


def describe(tree: Path, folder: Path) -> Path:
    """Writes a tree's metadata as if it were installed, so that its plugins are found before any others."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "moekit-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moekit\nVersion: 0\n", encoding="utf-8")
    groups = project["entry-points"].items()
    lines = [line for group, entries in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def extract(commit: str, folder: Path) -> Path:
    """Extracts a commit's tree into a folder."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(HERE), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    return folder


def answer(text: str) -> None:
    """Answers the process that started this one."""
    print(DONE, text, flush=True)


def work(threads: int, options: list[str]) -> None:
    """Trains in a worker, with its own tree's moekit, until its stdin is closed."""
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback

    from moekit.spec import load
    from moekit.training.module import LitMoE

    class Turns(Callback):
        """Pauses training until more steps are requested, and answers with their seconds."""

        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self._wait()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)
            if len(self.seconds) == self.count:
                answer(" ".join(f"{seconds:.6f}" for seconds in self.seconds))
                self._wait()
            self.start = time.perf_counter()

        def _wait(self) -> None:
            request = sys.stdin.readline()
            if not request:
                raise SystemExit
            self.count, self.seconds = int(request), list[float]()
            self.start = time.perf_counter()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    torch.set_num_threads(threads)
    for name in ("machine", "training.run.allocator", "training.allocator"):  # by age; the foundation has none
        with suppress(ImportError):
            importlib.import_module(f"moekit.{name}").keep_freed_memory()
    module = LitMoE(load(options[0], options[1:]))
    module.prepare()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision="32-true", max_steps=10**6, log_every_n_steps=10**6,
        limit_val_batches=0, gradient_clip_val=module.recipe.trainer.gradient_clip_val, callbacks=[Turns()],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    answer(f"{sum(p.numel() for p in module.parameters()):,} parameters")
    trainer.fit(module)


def measure(workers: list[Worker], rounds: int, steps: int) -> None:
    """Warm-up rounds, then those that are counted; each begins with another worker."""
    for turn in range(WARM_UP + rounds):
        first = turn % len(workers)
        for worker in workers[first:] + workers[:first]:
            seconds = worker.steps(steps)
            if turn >= WARM_UP:
                worker.rounds.append(statistics.median(seconds[1:]))  # the first after a pause has a cold cache


def main() -> None:
    import measured  # not in a worker, which has another tree's packages

    from moekit_bench.results import ratio

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default=FOUNDATION, metavar="COMMIT", help="the older tree")
    parser.add_argument("--now", metavar="COMMIT", help="the newer tree (default: the files of this checkout)")
    parser.add_argument("--recipe", default="deepseek_v3", help="a recipe of the older tree's moekit_papers")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, in both trees")
    parser.add_argument(
        "--also", action="append", nargs="*", default=[], metavar="KEY=VALUE", help="the newer tree, with these too"
    )
    parser.add_argument("--freed", action="store_true", help="the newer tree once more, without keeping freed memory")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="of a round; the first is not counted")
    parser.add_argument("--threads", type=int, default=2)
    measured.option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        old = extract(args.since, folder / "old")
        now = extract(args.now, folder / "now") if args.now else HERE
        recipe = str(old / "plugins" / "moekit_papers" / f"{args.recipe}.yaml")
        workers = [Worker(args.since, old, [recipe, *args.set]), Worker(args.now or "now", now, [recipe, *args.set])]
        workers += [Worker(f"now {' '.join(more)}", now, [recipe, *args.set, *more]) for more in args.also]
        if args.freed:
            workers.append(Worker("now, freed memory not kept", now, [recipe, *args.set], OWN_TUNABLES))
        try:
            for worker in workers:
                worker.start(folder, args.threads)
            measure(workers, args.rounds, args.steps)
        finally:
            for worker in workers:
                worker.stop()
    old, rows = workers[0], []
    for worker in workers:
        print(f"{worker.name}: {worker.about}")
        found = None if worker is old else ratio(old.rounds, worker.rounds)
        times = [1e3 * min(worker.rounds), 1e3 * statistics.median(worker.rounds)]
        rows.append([worker.name, *times, found and found.best, found])
    columns = {"tree": "{}", "ms, best": "{:.1f}", "ms, median": "{:.1f}", "times as fast, best": "{:.2f}"}
    columns["median (quartiles)"] = measured.QUARTILES
    made = measured.table(columns, rows, device=f"{args.threads} threads")
    measured.publish("memory_returned" if args.freed else "steps_since", made, docs=args.docs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(int(sys.argv[2]), sys.argv[3:])
    else:
        main()
