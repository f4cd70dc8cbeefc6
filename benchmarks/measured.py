"""Measured tables: a benchmark prints one, and ``--docs`` stores it in docs/measured and shows it on the pages.

    python benchmarks/measured.py        # fills the blocks of every page anew from docs/measured

A page has the place of a table: two lines, ``<!-- written by benchmarks/NAME.py: TABLE -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from moekit.files import replace_text
from moekit.machine import processor_name
from moekit_bench.results import to_json

TOP = Path(__file__).parents[1]
FOLDER = TOP / "docs" / "measured"
PAGES = (TOP / "README.md", TOP / "README.zh.md", *sorted((TOP / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- written by ((?:benchmarks|tests)/\S+): (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
RATIO = "{best:.2f} ({median:.2f})"
"""The format of a cell that is a ``moekit_bench.results.Ratio``."""
QUARTILES = "{median:.2f} ({low:.2f} to {high:.2f})"
"""Another."""

Table = dict[str, Any]
"""What is stored: columns with their formats, rows as numbers, and where and when they were measured."""


def option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--docs``."""
    parser.add_argument("--docs", action="store_true", help="store the table in docs/measured, and show it on its page")


def table(
    columns: Mapping[str, str],
    rows: Sequence[Sequence[Any]],
    *,
    words: str = "",
    values: Mapping[str, Any] | None = None,
    command: str = "",
    device: str = "",
) -> Table:
    """A table that was measured just now.

    Args:
        columns: the format of each column (``str.format``), by its header, which has the unit.
        rows: a cell is a number or text, a list or a map or dataclass, whose items the format names, or None: empty.
        words: sentences below the table, with the names of ``values`` in braces.
        values: the figures of those sentences.
        command: that measured; default: this process's own.
        device: a GPU's name, or ``4 processes, one thread each``; default: the number of threads.
    """
    threads = torch.get_num_threads()
    changed = subprocess.run(["git", "status", "--porcelain", "moekit", "plugins"], cwd=TOP, capture_output=True)
    commit = subprocess.check_output(["git", "rev-parse", "--short=7", "HEAD"], cwd=TOP, text=True).strip()
    path = Path(sys.argv[0]).resolve()
    script = path.relative_to(TOP).as_posix() if path.is_relative_to(TOP) else path.name
    return {
        "command": command or f"python {shlex.join([script, *sys.argv[1:]])}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{processor_name()} ({os.cpu_count()} cores)",
        "device": device or f"{threads} thread{'s'[: threads - 1]}",
        "torch": version("torch").partition("+")[0],
        "python": platform.python_version(),
        "moekit": commit + (" and changes" if changed.stdout else ""),
        "columns": dict(columns),
        "rows": _short(to_json(rows)),
        "words": words,
        "values": _short(to_json(values or {})),
    }


def publish(name: str, made: Table, *, docs: bool) -> None:
    """Prints a table; with ``docs``, also stores it and fills its block."""
    print(text(made))
    if docs:
        FOLDER.mkdir(exist_ok=True)
        replace_text(FOLDER / f"{name}.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
        fill(name)


def text(made: Table) -> str:
    """A table as Markdown, with its words and where it was measured."""
    formats = list(made["columns"].values())
    rows = [made["columns"]]
    rows += [[_cell(form, cell) for form, cell in zip(formats, row, strict=True)] for row in made["rows"]]
    lines = ["|".join(["", *(f" {cell} " if cell else " " for cell in cells), ""]) for cells in rows]
    parts = ["\n".join([lines[0], f"|{'---|' * len(formats)}", *lines[1:]])] if formats else []
    parts += [_wrapped(made["words"].format(**made["values"]))] if made["words"] else []
    where = "{machine}, {device}; torch {torch}, Python {python}, moekit {moekit}".format(**made)
    return "\n\n".join([*parts, _wrapped(f"Measured {made['date']} by `{made['command']}`: {where}.")]) + "\n"


def stored(name: str) -> Table:
    """A stored table."""
    made: Table = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return made


def filled(page: str, name: str = "") -> str:
    """The text of a page with its blocks anew: all, or that of one table.

    Raises:
        FileNotFoundError: the page has a block for which nothing was stored.
    """

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{text(stored(found[3]))}{found[4]}" if name in ("", found[3]) else found[0]

    return BLOCK.sub(block, page)


def fill(name: str = "") -> None:
    """Fills the blocks of every page: all, or that of one table."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (after := filled(before, name)) != before:
            replace_text(page, after)


def _cell(form: str, cell: Any) -> str:
    if cell is None:
        return ""
    return form.format(**cell) if isinstance(cell, dict) else form.format(*cell if isinstance(cell, list) else [cell])


def _short(value: Any) -> Any:
    """Numbers with five digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _wrapped(paragraphs: str) -> str:
    """Text in lines of 120 characters; an empty line begins a paragraph."""
    parts = re.split(r"\n\s*\n", paragraphs.strip())
    return "\n\n".join(textwrap.fill(p, 120, break_long_words=False, break_on_hyphens=False) for p in parts)


if __name__ == "__main__":
    fill()
