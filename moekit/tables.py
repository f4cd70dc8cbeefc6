"""Tables of columns in ``.npz`` files: what a run records over time, readable with numpy alone.

A file holds some tables. The column ``load`` of the table ``experts`` is the array ``experts.load``; all columns of a
table have the same length. A column of integers may have names: ``experts.layer`` holds indices into the array
``experts.layer.names``. A folder of such files, one for each part of a run, is read as one: ``step-00000100.npz`` has
the rows up to step 100 that no file before it has.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from moekit.errors import MoekitError
from moekit.files import open_regular

LARGEST = 1 << 32  # bytes of a file that are read
Table = dict[str, np.ndarray]
"""The columns of a table by name, all of one length. A column with names is an object array of text."""

UNREADABLE = (
    OSError, ValueError, IndexError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What a damaged file raises: RuntimeError for a compression or an encryption that it does not have."""

NAMES = "names"
FILE = re.compile(r"step-(\d+)(?:-(\d+))?\.npz")


def read_tables(folder: Path, damaged: Callable[[MoekitError], object] | None = None) -> dict[str, Table]:
    """The tables in all files of a folder, rows in the order of the files' steps; empty without any.

    Args:
        folder: of the files.
        damaged: called with the error of each damaged file, which is then omitted; without it the error is raised.

    Raises:
        MoekitError: a file is damaged.
    """
    parts: dict[str, list[Table]] = {}
    for path in table_files(folder):
        try:
            found = _read(path, parts)
        except MoekitError as error:
            if damaged is None:
                raise
            damaged(error)
            continue
        for table, columns in found.items():
            parts.setdefault(table, []).append(columns)
    return {
        table: {name: np.concatenate([columns[name] for columns in some]) for name in some[0]}
        for table, some in parts.items()
    }


def table_files(folder: Path) -> list[Path]:
    """The files of tables in a folder, by their steps."""
    found = {path: match for path in folder.glob("*.npz") if (match := FILE.fullmatch(path.name))}
    return sorted(found, key=lambda path: (int(found[path][1]), int(found[path][2] or 0)))


def _read(path: Path, before: Mapping[str, list[Table]]) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    try:
        with open_regular(path, LARGEST) as file, np.load(file) as saved:
            for key in saved.files:
                table, _, name = key.partition(".")
                if not name.endswith(f".{NAMES}"):
                    column, names = saved[key], f"{key}.{NAMES}"
                    tables.setdefault(table, {})[name] = (
                        saved[names].astype(object)[column] if names in saved.files else column
                    )
            for table, columns in tables.items():
                shapes = {column.shape for column in columns.values()}
                if len(shapes) > 1 or len(next(iter(shapes))) != 1:
                    raise ValueError(f"the columns of table '{table}' are not of one length")
                if columns.keys() != before.get(table, [columns])[0].keys():
                    raise ValueError(f"table '{table}' has other columns than in the files before it")
    except UNREADABLE as error:
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise MoekitError(
            f"{path} cannot be read: {why}\n  expected a file of tables; delete it to do without"
        ) from error
    return tables
