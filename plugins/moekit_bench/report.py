"""Tables of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moekit_bench.results import Ratio, ShapeResult, StepResult, StepRow, VariantRow

REPORTED_ERROR = 0.03
"""A difference between variants of one function that is reported; bf16 rounds by less."""


def show(console: Console, result: ShapeResult, seen: set[str]) -> None:
    """Prints a table of variants and its notes, without the skip reasons in ``seen``, to which it adds its own."""
    table = Table(title=result.title, title_justify="left", caption_justify="left")
    table.add_column("variant")
    for head in ("ms", f"÷ {result.baseline}", "median (quartiles)", "forward ms, ÷", "backward ms, ÷"):
        table.add_column(head, justify="right")
    memory = any(row.saved is not None for row in result.rows)
    peak = any(row.peak is not None for row in result.rows)
    for head in (*(("saved MB, ÷ tokens",) if memory else ()), *(("peak MB",) if peak else ())):
        table.add_column(head, justify="right")
    for row in result.rows:
        table.add_row(*_cells(row, result.input_bytes, memory=memory, peak=peak))
    console.print(table)
    skips = [f"skipped: {name}: {why}" for name, why in result.skips.items()]
    for line in (*_notes(result), *(line for line in skips if line not in seen)):
        console.print(f"  {escape(line)}", highlight=False)
    seen |= set(skips)


def show_summary(console: Console, results: Sequence[ShapeResult]) -> None:
    """Prints the ratios of several shapes, a line each."""
    names = list(dict.fromkeys(row.name for result in results for row in result.rows if row.name != result.baseline))
    table = Table(title=f"÷ {results[0].baseline}: best rounds (median of the rounds)", title_justify="left")
    table.add_column("shape: T D H E K")
    for name in names:
        table.add_column(escape(name), justify="right")
    for result in results:
        cells = {row.name: f"{row.ratio.best:.2f} ({row.ratio.median:.2f})" for row in result.rows}
        table.add_row(result.title, *(cells.get(name, "") for name in names))
    console.print(table)


def _cells(row: VariantRow, input_bytes: int, *, memory: bool, peak: bool) -> list[str]:
    cells = [
        escape(row.name),
        f"{row.ms:.2f}",
        f"{row.ratio.best:.2f}",
        _spread(row.ratio),
        f"{row.forward_ms:.2f}  {row.forward_ratio.best:.2f}",
        f"{row.backward_ms:.2f}  {row.backward_ratio.best:.2f}",
    ]
    if memory:
        saved = row.saved
        cells.append("" if saved is None else f"{saved.bytes / 1e6:.1f}  {saved.bytes / input_bytes:.2f}")
    if peak:
        cells.append("" if row.peak is None else f"{row.peak / 1e6:.1f}")
    return cells


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _notes(result: ShapeResult) -> Iterator[str]:
    for what, count in result.multiply_adds.items():
        yield f"multiply-adds of one forward pass, {what}: {count:,}"
    if result.least_bytes and any(row.saved is not None for row in result.rows):
        over = result.least_bytes / result.input_bytes
        yield (
            f"saved for backward, without weights; tokens T·D: {result.input_bytes / 1e6:.1f} MB; "
            f"T·D + T·K·2H: {result.least_bytes / 1e6:.1f} MB, {over:.2f} times the tokens"
        )
    for row in result.rows:
        if row.dropped:
            yield f"{row.name}: drops {row.dropped:.1%} of the pairs, so its work differs from the others'"
        if row.error is not None and not row.error < REPORTED_ERROR:
            yield f"{row.name}: DIFFERS from the others by {row.error:.1e} of the largest output"
        if row.note:
            yield f"{row.name}: {row.note}"
    for name, why in result.explained.items():
        yield f"{name} explains: {why}"


def show_steps(console: Console, result: StepResult) -> None:
    """Prints a table of training steps, part by part."""
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
        console.print("  this model has no dense baseline to compare with", highlight=False)


def _step_lines(result: StepResult) -> Iterator[tuple[str, list[str]]]:
    rows = result.rows
    yield "parameters", [f"{row.parameters:,}" for row in rows]
    yield "ms, best round", [f"{row.ms:.2f}" for row in rows]
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if ratios:
        yield f"÷ {result.baseline}, best rounds", [f"{ratio.best:.2f}" for ratio in ratios]
        yield f"÷ {result.baseline}, median (quartiles)", [_spread(ratio) for ratio in ratios]
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


def sentence(about: dict[str, str | int]) -> str:
    """What was measured on (``results.machine``), in one line."""
    cores = f"{about['threads']} of {about['cores']} cores, " if about["device"] == "cpu" else ""
    return f"{about['name']}, {cores}torch {about['torch']}, Python {about['python']}, {about['dtype']}"
