"""``moekit reproduce``: measures what papers claim, and keeps a ledger. Interrupted, the same command resumes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moekit.cli import text
from moekit.errors import MoekitError
from moekit.extras import require
from moekit.registry import current

if TYPE_CHECKING:
    from moekit_reproduce.engine import Progress
    from moekit_reproduce.study import ClaimSpec

EXAMPLES = """\
  moekit reproduce --list                     the papers, and what is measured of each
  moekit reproduce switch                     one paper, in its full form: up to 15 minutes on two cores
  moekit reproduce --quick --all              every paper in minutes, to see that all of it runs
  moekit reproduce --all --seeds 5            more seeds; what is measured already is not repeated
  moekit reproduce switch steps=500           other sizes: moekit show switch
  moekit reproduce --all --ledger docs        write docs/ledger.md, its JSON and its plots
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("names", nargs="*", default=[], metavar="PAPER", help="papers, and options as key=value")
    parser.add_argument("--all", action="store_true", help="every paper")
    parser.add_argument("--list", action="store_true", help="list the papers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two seeds, which say nothing of the paper")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of every system")
    parser.add_argument(
        "--out", type=Path, default=Path("reproductions"), metavar="DIR", help="measurements (default: reproductions)"
    )
    parser.add_argument("--ledger", type=Path, metavar="DIR", help="where the ledger is written (default: as --out)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Measures the papers, one after the other, and prints what was found.

    Raises:
        MoekitError: matplotlib is not installed, no such paper, an option is out of range, or a run failed.
    """
    from moekit_reproduce.ledger import PAGE, year_of

    found = sorted(current().components("claim"), key=lambda claim: (year_of(claim.paper), claim.name))
    claims = {claim.name: claim for claim in found}
    if args.list:
        print("\n".join(text.table([(name, claim.summary, claim.paper) for name, claim in claims.items()])))
        return 0
    require("plots", "moekit reproduce, which draws what it measures,", "matplotlib")
    names = [name for name in args.names if "=" not in name]
    for name in names:
        current().get("claim", name)  # reports an unknown name, with the nearest
    if args.all == bool(names):
        known = ", ".join(claims)
        raise MoekitError(f"reproduce takes papers or --all, not both\n  expected some of {known}")
    if args.threads < 1:
        raise MoekitError(f"--threads {args.threads}: expected 1 or more")
    options = [each for each in args.names if "=" in each]
    specs = {name: spec_of(name, options, quick=args.quick, seeds=args.seeds) for name in names or claims}
    from moekit.registry import build
    from moekit_reproduce.engine import planned
    from moekit_reproduce.paper import reproduce

    flags = [*(["--quick"] if args.quick else []), *([f"--seeds {args.seeds}"] if args.seeds else [])]
    for name, spec in specs.items():
        with _progress(name, planned(build(spec), spec)) as progress:
            row = reproduce(
                name,
                spec,
                out=args.out,
                page=args.ledger,
                quick=args.quick,
                command=" ".join(["moekit reproduce", name, *map(shlex.quote, options), *flags]),
                threads=args.threads,
                progress=progress,
            )
        print("\n".join(_report(row)))
    page = (args.ledger or args.out) / ("quick" if args.quick else "") / PAGE
    print(f"the ledger: {page}")
    return 0


def spec_of(name: str, options: list[str], *, quick: bool, seeds: int | None) -> ClaimSpec:
    """A claim's spec, with options as ``key=value``.

    Raises:
        SpecError: with every mistake in the options.
    """
    from moekit.spec import component_spec
    from moekit.spec.tree import read
    from moekit_reproduce.study import ClaimSpec

    node: dict[str, Any] = {"use": name}
    if quick:
        node |= current().get("claim", name).spec_class.quick
    if seeds is not None:
        node["seeds"] = seeds
    for each in options:
        key, _, value = each.partition("=")
        node[key] = read(f"value: {value}", each, lines=False).data["value"]
    spec = component_spec("claim", node)
    assert isinstance(spec, ClaimSpec)
    return spec


def _report(row: dict[str, Any]) -> Iterator[str]:
    from moekit_reproduce.ledger import number

    yield text.bold(row["title"])
    rows = [
        (
            c["claim"],
            f"{number(c['mean'])} ({number(c['low'])} to {number(c['high'])})",
            f"{c['at_least']:g}",
            c["verdict"],
        )
        for c in row["claims"]
    ]
    yield from text.table([("claim", "mean (90 % interval)", "threshold", "verdict"), *rows], fold=(0,))
    yield f"  {row['minutes']:.1f} minutes of measurements"


@contextmanager
def _progress(name: str, total: int) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line for each measurement."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from moekit.screen import Screen
    from moekit_reproduce.engine import Progress

    screen = Screen(stderr=True)
    columns = (TextColumn("{task.fields[paper]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TextColumn("{task.description}"), console=screen, disable=not screen.is_terminal) as bars:
        task = bars.add_task("", total=total, paper=name)

        def done(line: str, kept: bool) -> None:
            bars.advance(task)
            if bars.tasks[0].completed > (bars.tasks[0].total or 0):
                bars.update(task, total=bars.tasks[0].completed)  # a search continues beyond its rates
            if not kept:
                screen.print(f"  {name}: {line}", highlight=False)

        yield Progress(step=lambda words: bars.update(task, description=words), done=done)
