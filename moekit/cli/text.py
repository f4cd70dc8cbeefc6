"""Plain text for the terminal: aligned columns that fit its width. Importing ``rich`` would take longer."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit.registry import Registry

GAP = 2
NARROWEST = 20  # the least width of a folded column


def width() -> int | None:
    """Width of the terminal; None if the output goes to a file or pipe and ``COLUMNS`` is unset."""
    if not os.environ.get("COLUMNS", "").isdigit() and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def bold(text: str) -> str:
    """The text in bold on a terminal, unless ``NO_COLOR`` is set; elsewhere unchanged."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def columns(rows: Iterable[Sequence[str]]) -> list[int]:
    """The width of the longest cell in each column."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def to_the_right(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[tuple[str, ...]]:
    """The rows, padded so that ``table`` aligns all columns but the first ``left`` to the right."""
    sizes = columns(rows)
    return [(*row[:left], *map(str.rjust, row[left:], sizes[left:])) for row in rows]


def table(
    rows: Iterable[Sequence[str]],
    *,
    indent: int = 2,
    fold: Sequence[int] = (),
    sizes: Sequence[int] = (),
    limit: int | None = None,
) -> list[str]:
    """Rows as lines with aligned columns; empty columns are omitted.

    Args:
        rows: rows of equally many cells.
        indent: spaces before each line.
        fold: indices of the columns that may be folded to fit the limit.
        sizes: width of each column, to align several tables (default: from ``rows``).
        limit: maximal width of a line (default: the terminal's).
    """
    cells = [list(row) for row in rows]
    if not cells:
        return []
    fitted = _fitted(list(sizes) or columns(cells), indent, fold, width() if limit is None else limit)
    lines: list[str] = []
    for row in cells:
        folded = [
            textwrap.wrap(cell, fitted[i], break_long_words=False, break_on_hyphens=False) if i in fold else [cell]
            for i, cell in enumerate(row)
            if fitted[i]
        ]
        room = [size for size in fitted if size]
        for parts in zip_longest(*folded, fillvalue=""):
            padded = [part.ljust(size) for part, size in zip(parts, room, strict=True)]
            lines.append((" " * indent + (" " * GAP).join(padded)).rstrip())
    return lines


def paragraph(text: str, *, indent: int = 2) -> list[str]:
    """Text folded to the terminal's width, or to 100 without a terminal."""
    pad = " " * indent
    return textwrap.wrap(text, width() or 100, initial_indent=pad, subsequent_indent=pad)


def print_json(plain: object, *, indent: int = 2) -> None:
    """Prints plain data as JSON."""
    import json  # the tables need none

    print(json.dumps(plain, indent=indent))


def note_failed(registry: Registry) -> None:
    """Names the plugins that failed, on stderr."""
    for plugin in registry.failed:
        print(f"note: plugin '{plugin.name}' failed to load; see: moekit plugins", file=sys.stderr)


def _fitted(sizes: list[int], indent: int, fold: Sequence[int], limit: int | None) -> list[int]:
    """The widths of columns after the widest foldable one was narrowed, step by step, until lines fit."""
    if limit is None:
        return sizes
    excess = indent + sum(size + GAP for size in sizes if size) - GAP - limit
    while excess > 0:
        foldable = [i for i in fold if sizes[i] > NARROWEST]
        if not foldable:
            break
        sizes[max(foldable, key=lambda i: sizes[i])] -= 1
        excess -= 1
    return sizes
