"""Results of checks as a table, and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit_testing.running import Result, Status

STYLES: dict[Status, str] = {"passed": "green", "failed": "bold red", "known failure": "yellow", "skipped": "dim"}


def show(console: Console, results: Sequence[Result]) -> None:
    """Prints a table for each case, and below it what its failures demanded."""
    for (case, options), group in groupby(results, key=lambda result: (result.case, result.options)):
        console.print(f"[bold]{escape(case)}[/]  {escape(options)}", highlight=False)
        table = Table()
        table.add_column("check", no_wrap=True)
        table.add_column("result", no_wrap=True)
        table.add_column("s", justify="right")
        table.add_column("reason", overflow="fold")
        found = list(group)
        for each in found:
            took = "" if each.status == "skipped" else f"{each.seconds:.2f}"
            table.add_row(each.check, f"[{STYLES[each.status]}]{each.status}[/]", took, escape(each.reason))
        console.print(table)
        for each in found:
            if each.status == "failed" and each.message:
                console.print(f"\n{escape(each.message)}", highlight=False)
        console.print()


def show_summary(console: Console, results: Sequence[Result]) -> None:
    """Prints how many checks had which result."""
    counts = Counter(result.status for result in results)
    words = [f"{counts[status]} {status}" for status in STYLES if counts[status]]
    seconds = sum(result.seconds for result in results)
    console.print(f"{', '.join(words)} in {seconds:.1f} s", highlight=False)


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The results, and how many had which status."""
    counts = Counter(result.status for result in results)
    return {"counts": dict(counts), "results": [dataclasses.asdict(result) for result in results]}
