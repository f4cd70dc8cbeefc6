"""``moekit ls runs``: the runs below a folder, with their state and results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moekit.cli import text

EXAMPLES = """\
  moekit ls runs
  moekit ls runs --json    for a program
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def rows_of(root: Path) -> Iterator[dict[str, Any]]:
    """Every run below ``root``, the oldest of a name first: folder, state, steps, tokens, main metric and its value."""
    from moekit.errors import MoekitError
    from moekit.training.run.folder import RunFolder, started
    from moekit.training.run.metrics_log import read_metrics
    from moekit.training.run.outcome import read_summary

    found = [path.parent for path in root.rglob("spec.yaml") if RunFolder(path.parent).main.path == path.parent]
    for path in sorted(found, key=lambda path: (path.parent.as_posix(), started(path), path.name)):
        folder = RunFolder(path)
        row: dict[str, Any] = {"run": path.as_posix(), "state": "begun", "steps": 0, "tokens": 0.0, "metric": ""}
        if folder.summary.is_file():
            try:
                summary = read_summary(folder.summary)
            except MoekitError:
                row["state"] = "damaged"
            else:
                row |= {"state": "complete", "steps": summary["steps"], "tokens": summary["tokens"]}
                row |= {"metric": summary["metric"], "value": summary["validation"].get(summary["metric"])}
        elif rows := read_metrics(folder.metrics):
            row |= {"steps": max(rows), "tokens": max(each.get("tokens", 0.0) for each in rows.values())}
            row["state"] = "begun" if folder.last is None else "resumable"
        yield row


def run(args: argparse.Namespace) -> int:
    """Prints them."""
    found = list(rows_of(Path(args.out)))
    if args.json:
        text.print_json(found)
        return 0
    cells = [("run", "state", "steps", "tokens", "result")]
    for row in found:
        result = "" if row.get("value") is None else f"{row['value']:,.4g} {row['metric'].replace('_', ' ')}"
        cells.append((row["run"], row["state"], f"{row['steps']:,}", f"{row['tokens']:,.0f}", result))
    print("\n".join(text.table(cells)) if found else f"no runs below {args.out}/; train one: moekit train RECIPE")
    return 0
