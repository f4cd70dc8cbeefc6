"""The notes under a table of variants: drops, differences, what libraries note, skips."""

from __future__ import annotations

import io

from rich.console import Console

from moekit_bench.report import show
from moekit_bench.results import Ratio, ShapeResult, VariantRow

ONE = Ratio(best=1.0, median=1.0, low=1.0, high=1.0)


def row(name: str, dropped: float = 0.0, error: float | None = None, note: str = "") -> VariantRow:
    return VariantRow(
        name=name, ms=2.0, forward_ms=1.0, backward_ms=1.0, ratio=ONE, forward_ratio=ONE, backward_ratio=ONE,
        seconds={}, peak=3_000_000, dropped=dropped, error=error, note=note,
    )  # fmt: skip


def test_notes_report_drops_differences_explanations_and_new_skips() -> None:
    rows = [row("a", dropped=0.25), row("b", error=0.5), row("nan", error=float("nan")), row("c", error=0.01, note="n")]
    result = ShapeResult(
        title="small", baseline="a", rows=rows, sizes={}, skips={"d": "why", "e": "seen"}, explained={"auto": "loop"}
    )
    out, seen = io.StringIO(), {"skipped: e: seen"}
    show(Console(file=out, width=200), result, seen)
    lines = [line.strip() for line in out.getvalue().splitlines() if line.startswith("  ")]
    assert lines == [
        "a: drops 25.0% of the pairs, so its work differs from the others'",
        "b: DIFFERS from the others by 5.0e-01 of the largest output",
        "nan: DIFFERS from the others by nan of the largest output",
        "c: n",
        "auto explains: loop",
        "skipped: d: why",
    ]
    assert "peak MB" in out.getvalue() and seen == {"skipped: e: seen", "skipped: d: why"}
