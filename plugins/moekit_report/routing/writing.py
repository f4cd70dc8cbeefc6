"""Writing the tables that ``moekit.tables`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moekit.files import replace_file
from moekit.tables import NAMES


def save_tables(
    path: Path, tables: Mapping[str, Mapping[str, np.ndarray]], names: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Writes tables to a file, whole or not at all.

    Args:
        path: the file.
        tables: columns by table and name.
        names: for every table, the names that a column of this name holds indices into.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {f"{table}.{name}": column for table, columns in tables.items() for name, column in columns.items()}
    for column, texts in (names or {}).items():
        arrays |= {f"{t}.{column}.{NAMES}": np.array(list(texts), dtype=str) for t in tables if column in tables[t]}

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    replace_file(path, save)
