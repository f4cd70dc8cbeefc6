"""``moekit sweep``: a recipe over a grid of options and seeds, in parallel, resumable, compared at the end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from moekit_report.sweeping import Runner

EXAMPLES = """\
  moekit sweep switch optimizer.lr=1e-3,3e-3,1e-2 --seeds 3
  moekit sweep deepseek_v3 model.moe.router.top_k=2,4,8 model.moe.experts.count=16,64 trainer.max_steps=200 --jobs 2
  moekit sweep switch optimizer.lr=1e-3,2e-3,4e-3 seq=64,128 --random 3       three points of the grid
  the same command continues a sweep that was ended, also by a kill
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument("options", nargs="*", metavar="KEY=A,B,C", help="axes of the grid; KEY=A is for all runs")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of every point (default: 1)")
    parser.add_argument(
        "--random", type=int, default=0, metavar="N", help="take N points of the grid at random (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of each run (default: the cores, divided by jobs)"
    )
    parser.add_argument("--name", default="", help="name of the sweep's folder (default: sweeps/ and the recipe's)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Runs what is not complete, and prints the comparison; also writes it as ``compare.html`` in the sweep's folder.

    Raises:
        MoekitError: a mistake in the arguments, or in the recipe of a trial; nothing has been run. Or every run failed.
    """
    import os

    from moekit.errors import MoekitError
    from moekit.spec import load
    from moekit_report.sweeping import Runner, is_complete, parse, plan, run_of

    if args.jobs < 1 or args.threads < 0:
        raise MoekitError(
            f"--jobs {args.jobs}, --threads {args.threads}: expected 1 job or more, and 0 threads or more"
        )
    sweep = parse(args.recipe, args.options, seeds=args.seeds, sample=args.random)
    trials = sweep.trials()
    for trial in trials:
        load(sweep.recipe, [*sweep.overrides, *trial.options, f"seed={trial.seed}"])
    folder = Path(args.out) / (args.name or f"sweeps/{Path(args.recipe).stem}")
    plan(folder, sweep)
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    runner = Runner(folder, sweep, jobs=args.jobs, threads=threads)
    _watch(runner)
    complete = [found for trial in trials if is_complete(found := run_of(folder, trial)) and found is not None]
    for trial, code in runner.failed.items():
        print(f"failed with exit code {code}: {trial.name}; see {folder / trial.name / 'output.txt'}")
    if not complete:
        raise MoekitError(f"no run of the sweep is complete\n  see {folder}/*/output.txt")
    from moekit_report.comparison import compare_runs
    from moekit_report.verbs.compare import lines, write_page

    compared = compare_runs(complete)
    print(json.dumps(compared.plain(), indent=1) if args.json else "\n".join(lines(compared)))
    write_page(compared, folder / "compare.html")
    if not args.json:
        print(f"wrote {folder / 'compare.html'}")
    return 1 if runner.failed else 0


def _watch(runner: Runner) -> None:
    """Runs the sweep; on a terminal with a table of all trials, elsewhere silently."""
    from moekit.screen import Screen

    screen = Screen(stderr=True)
    if not screen.is_terminal:
        runner.run(lambda: None)
        return
    from rich.live import Live

    with Live(table_of(runner), console=screen, refresh_per_second=2, transient=True) as live:
        runner.run(lambda: live.update(table_of(runner)), every=0.5)


def table_of(runner: Runner) -> Table:
    """The progress of every trial."""
    from rich.table import Table

    from moekit_report.sweeping import is_complete, run_of

    table = Table("trial", "state", "step", "loss", box=None, pad_edge=False)
    for trial in runner.sweep.trials():
        found = run_of(runner.folder, trial)
        metrics: dict[str, Any] = {} if found is None else found.metrics
        step = f"{metrics['step'][-1]:,.0f}" if metrics else ""
        losses = [value for value in metrics.get("train/loss", ()) if value is not None]
        loss = f"{losses[-1]:.3f}" if losses else ""
        done = "complete" if is_complete(found) else "begun" if found else "waiting"
        state = "failed" if trial in runner.failed else "running" if trial in runner.running else done
        table.add_row(trial.name, state, step, loss)
    return table
