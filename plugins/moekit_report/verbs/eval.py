"""``moekit eval``: the metrics of a trained model by domain, on its own data or on another corpus."""

from __future__ import annotations

import argparse
import json

EXAMPLES = """\
  moekit eval deepseek_v3                                     its validation set, by domain
  moekit eval deepseek_v3 data.use=text_files data.path=mine  another corpus: a folder for each domain
  moekit eval runs/switch/2026-01-31_12-00-00 data.validation_windows=500 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("overrides", nargs="*", metavar="data.KEY=VALUE", help="options of the data to change")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Prints a row for each domain.

    Raises:
        MoekitError: there is no such run, or it cannot be scored.
    """
    from dataclasses import asdict

    from moekit import run as runs
    from moekit.cli import text
    from moekit.spec.fields import MetricInfo, metrics_of
    from moekit_report.scoring import score

    scores, recipe = score(runs.open(args.run, out=args.out), args.overrides)
    if args.json:
        print(json.dumps([asdict(each) for each in scores], indent=1))
        return 0
    declared = metrics_of(recipe)
    infos = {name: declared.get(name, MetricInfo(name)) for name in scores[-1].values}
    rows = [("domain", "sequences", "tokens", *(info.with_unit() for info in infos.values()))]
    for each in scores:
        # A domain has no value of a loss over the routing of a batch.
        values = (info.format(each.values[name]) if name in each.values else "" for name, info in infos.items())
        rows.append((each.domain, f"{each.sequences:,}", f"{each.tokens:,}", *values))
    print("\n".join(text.table(text.to_the_right(rows))))
    return 0
