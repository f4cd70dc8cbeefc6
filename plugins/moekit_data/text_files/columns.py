"""Rows of Parquet and Arrow files, by pyarrow: only the columns that are needed, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moekit.errors import DataError
from moekit_data.text_files.faults import Reading
from moekit_data.text_files.files import Segment, open_plain

ROWS = 1024
"""Rows of a Parquet file that are read at a time."""


def rows(segment: Segment, how: Reading) -> Iterator[dict[str, Any]]:
    """Each row: the columns of the text and of the domain, if the file has one.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or has no column of that name for the text.
    """
    path = segment.path
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{path} needs the package pyarrow to be read\n  expected it installed: pip install 'moekit[datasets]'"
        ) from None
    try:
        for batch in _parquet(path, how) if segment.form == "parquet" else _arrow(path, how):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"damaged: {path}: {error}\n  expected a complete {segment.form} file") from error


def _parquet(path: Path, how: Reading) -> Iterator[Any]:
    from pyarrow import parquet

    with open_plain(path) as raw, parquet.ParquetFile(raw) as file:
        columns = _columns(path, file.schema_arrow.names, how)
        yield from file.iter_batches(batch_size=ROWS, columns=columns)


def _arrow(path: Path, how: Reading) -> Iterator[Any]:
    """Batches of either format of Arrow: a file, or a stream as ``datasets`` writes it."""
    import pyarrow

    with open_plain(path) as raw:
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        opened = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(raw)
        with opened as reader:
            columns = _columns(path, reader.schema.names, how)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS):
                    yield batch.slice(start, ROWS).select(columns)


def _columns(path: Path, names: list[str], how: Reading) -> list[str]:
    if how.text_key not in names:
        raise DataError(
            f"{path} has no column '{how.text_key}'\n  its columns are {', '.join(names)} (option data.text_key)"
        )
    return [how.text_key, *([how.domain_key] if how.domain_key in names else [])]
