"""``moekit sweep``: a recipe over options and seeds, in parallel, resumable, compared at the end."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from moekit_report.comparison import Comparison
    from moekit_report.trials import Runner

EXAMPLES = """\
  moekit sweep switch optimizer.lr=1e-3,3e-3,1e-2 --seeds 3
  moekit sweep deepseek_v3 model.moe.router.top_k=2,4,8 model.moe.experts.count=16,64 trainer.max_steps=200 --jobs 2
  moekit sweep switch optimizer.lr=1e-4..1e-2 data.seq=64,128 --random 8      eight random points
  moekit sweep switch optimizer.lr=1e-4..1e-2 --tpe 20 --prune                points by results; Optuna ends the worse
  the same command continues a sweep that was ended, also by a kill
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument(
        "options", nargs="*", metavar="KEY=A,B,C", help="axes, also KEY=LOW..HIGH; KEY=A is for all runs"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of every point (default: 1)")
    parser.add_argument(
        "--random", type=int, default=0, metavar="N", help="take N points at random (default: the whole grid)"
    )
    parser.add_argument("--tpe", type=int, default=0, metavar="N", help="take N points that Optuna proposes by results")
    parser.add_argument("--prune", action="store_true", help="end a run that is worse than the median of those before")
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
    from moekit_report.sweeping import is_complete, parse, plan, run_of
    from moekit_report.trials import Runner

    if args.jobs < 1 or args.threads < 0:
        raise MoekitError(
            f"--jobs {args.jobs}, --threads {args.threads}: expected 1 job or more, and 0 threads or more"
        )
    sweep = parse(args.recipe, args.options, seeds=args.seeds, sample=args.random, tpe=args.tpe, prune=args.prune)
    if sweep.is_guided:
        from moekit_report.optuna_study import optuna

        optuna()
    for options in sweep.examples():
        load(sweep.recipe, [*sweep.overrides, *options, "seed=0"])
    folder = Path(args.out) / (args.name or f"sweeps/{Path(args.recipe).stem}")
    plan(folder, sweep)
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    runner = Runner(folder, sweep, jobs=args.jobs, threads=threads)
    _watch(runner)
    complete = [found for trial in runner.known if is_complete(found := run_of(folder, trial)) and found is not None]
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
        print(best_of(compared))
        print(f"wrote {folder / 'compare.html'}")
    return 1 if runner.failed else 0


def best_of(compared: Comparison) -> str:
    """The best point of a sweep, in words."""
    found = [group for group in compared.groups if math.isfinite(group.values["result"].mean)]
    if not found:
        return "no run has a result"
    choose = min if compared.info.lower_is_better else max
    best = choose(found, key=lambda group: group.values["result"].mean)
    name = best.runs[0].path.parent.name.rpartition(",seed=")[0]
    return f"best: {name or best.label}, {best.values['result'].text(compared.info.digits)} {compared.info.label}"


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
    for trial in runner.known:
        found = run_of(runner.folder, trial)
        metrics: dict[str, Any] = {} if found is None else found.metrics
        step = f"{metrics['step'][-1]:,.0f}" if metrics else ""
        losses = [value for value in metrics.get("train/loss", ()) if value is not None]
        loss = f"{losses[-1]:.3f}" if losses else ""
        done = "complete" if is_complete(found) else "begun" if found else "waiting"
        state = "failed" if trial in runner.failed else "running" if trial in runner.running else done
        table.add_row(trial.name, state, step, loss)
    return table
