"""The table of a training step."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit.bench.report import spread
from moekit.bench.step_result import StepComparison, StepRow


def show_steps(console: Console, result: StepComparison) -> None:
    """A table of training steps, part by part."""
    console.print(f"[bold]one training step of {escape(result.title)}[/bold]", highlight=False)
    table = Table("")
    for row in result.rows:
        table.add_column(row.name, justify="right")
    for name, cells in _step_lines(result):
        table.add_row(name, *cells)
    console.print(table)
    for row in result.rows:
        if row.note:
            console.print(f"  {escape(row.name)}: {escape(row.note)}", highlight=False)
    if not result.baseline:
        console.print("  this model has no dense twin to compare with", highlight=False)


def _step_lines(result: StepComparison) -> Iterator[tuple[str, list[str]]]:
    rows = result.rows
    yield "parameters", [f"{row.parameters:,}" for row in rows]
    yield "ms, best round", [f"{row.ms:.2f}" for row in rows]
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if ratios:
        yield f"÷ {result.baseline}, best rounds", [f"{ratio.best:.2f}" for ratio in ratios]
        yield f"÷ {result.baseline}, median (quartiles)", [spread(ratio) for ratio in ratios]
    for part in rows[0].parts:
        if part != "logging":
            yield f"  {part} ms, of the step", [_part(row, part) for row in rows]
    logging = [row.logging_ms for row in rows]
    yield (
        "  a step that logs, ms more",
        ["" if ms is None else f"{ms:.2f}, every {row.log_every}" for ms, row in zip(logging, rows, strict=True)],
    )
    yield "outside model, objective and optimizer", [f"{row.outside:.1%}" for row in rows]
    if any(row.saved is not None for row in rows):
        yield "saved for backward, MB", [f"{row.saved.bytes / 1e6:.1f}" if row.saved else "" for row in rows]
    if any(row.peak is not None for row in rows):
        yield "peak on the GPU, MB", [f"{row.peak / 1e6:.1f}" if row.peak is not None else "" for row in rows]


def _part(row: StepRow, part: str) -> str:
    if part not in row.parts:
        return ""
    return f"{row.parts[part]:.2f} {row.parts[part] / sum(row.parts.values()):>6.1%}"
