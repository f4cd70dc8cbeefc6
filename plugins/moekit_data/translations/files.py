"""Reads a user's own pairs, JSON lines or tab-separated, and says exactly what is wrong with a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from moekit.errors import DataError
from moekit_data.translations import LANGUAGE
from moekit_data.translations.pairs import Pair

JSON_LINES = (".jsonl", ".ndjson")
TABS = (".tsv",)
FIELDS = Pair._fields


def read_files(path: Path) -> Iterator[Pair]:
    """Every pair of a file, or of a folder's files in order of name.

    Raises:
        DataError: nothing there, nothing readable, or a malformed line; the message names file and line.
    """
    path = Path(os.path.expanduser(path))
    try:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*JSON_LINES, *TABS) and p.is_file())
        else:
            found = [path] if path.is_file() else []
        if not found:
            seen_from = "" if path.is_absolute() else f"\n  looked in {Path.cwd()}, where the command runs"
            raise DataError(f"no pairs at {path}{seen_from}\n  expected a .jsonl or .tsv file, or a folder of them")
        for file in found:
            yield from _json_lines(file) if file.suffix.lower() in JSON_LINES else _tabs(file)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _json_lines(path: Path) -> Iterator[Pair]:
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _malformed(path, number, f"not JSON ({error})") from error
        if not isinstance(record, dict):
            raise _malformed(path, number, f"a JSON {type(record).__name__}, not an object")
        yield _pair([record.get(name) for name in FIELDS], path, number)


def _tabs(path: Path) -> Iterator[Pair]:
    order: Sequence[int] = range(len(FIELDS))
    for number, line in _lines(path):
        cells = line.split("\t")
        if len(cells) != len(FIELDS):
            raise _malformed(path, number, f"{len(cells)} {'column' if len(cells) == 1 else 'columns'}")
        if number == 1 and sorted(cells) == sorted(FIELDS):
            order = [cells.index(name) for name in FIELDS]
        else:
            yield _pair([cells[i] for i in order], path, number)


def _pair(values: Sequence[object], path: Path, number: int) -> Pair:
    texts: list[str] = []
    for name, value in zip(FIELDS, values, strict=True):
        if not isinstance(value, str):
            raise _malformed(path, number, f"no '{name}'" if value is None else f"'{name}' is {value!r}")
        if "\0" in value:
            raise _malformed(path, number, f"'{name}' contains the character U+0000")
        texts.append(value)
    pair = Pair(*texts)
    if not re.fullmatch(LANGUAGE, pair.language):
        raise _malformed(path, number, f"'language' is {pair.language!r}")
    return pair


def _malformed(path: Path, line: int, found: str) -> DataError:
    if path.suffix.lower() in JSON_LINES:
        expected = '{"source": "Save", "target": "Sichern", "language": "de"}'
    else:
        expected = "three columns with tabs between: source, target, language (a first line may name another order)"
    return DataError(f"{path}, line {line}: {found}\n  expected {expected}")
