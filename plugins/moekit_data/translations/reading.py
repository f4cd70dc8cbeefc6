"""Reads translation pairs: Django's gettext catalogs, or a user's JSON lines and tab-separated files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from moekit.errors import DataError
from moekit.extras import install, require
from moekit.files import open_regular
from moekit_data.text_files.files import JSON_LINES, searched_folder
from moekit_data.text_files.reading import decoded, json_object
from moekit_data.translations import LANGUAGE
from moekit_data.translations.pairs import Pair

TABS = (".tsv",)
FIELDS = Pair._fields


def read_django(languages: Sequence[str] = ()) -> Iterator[Pair]:
    """Every translated entry of Django's core and contrib apps, catalog by catalog in order of path.

    Django itself is not imported.

    Args:
        languages: only catalogs of these are read; all catalogs if none is given, or one has no catalog.

    Raises:
        MissingPackage: Django or polib is not installed.
        DataError: Django has no catalogs.
    """
    require("translation", "reading pairs from Django's catalogs", "django", "polib")
    root = Path(str(spec.origin)).parent if (spec := find_spec("django")) else Path()
    catalogs = sorted(root.glob("**/locale/*/LC_MESSAGES/*.po"))
    if not catalogs:
        raise DataError(
            f"no catalogs below {root}\n  expected locale/*/LC_MESSAGES/*.po, which some distributions omit\n"
            f"  {install('translation')}"
        )
    language_of = {path: path.parent.parent.name for path in catalogs}
    found = set(language_of.values())
    chosen = set(languages) if languages and found.issuperset(languages) else found
    for path, language in language_of.items():
        if language in chosen and language.partition("_")[0] != "en":  # en_AU, en_GB: other spelling, no translation
            yield from read_catalog(path, language)


def read_catalog(path: Path, language: str) -> Iterator[Pair]:
    """The entries of one catalog that are translated, neither obsolete nor fuzzy, and without plural forms.

    Raises:
        DataError: polib does not load, or the file is damaged.
    """
    try:
        import polib  # loaded for these pairs alone
    except ImportError as error:  # read_django found it, but it does not load
        raise DataError(f"data translations cannot load polib: {error}\n  {install('translation')}") from error
    try:
        entries = list(polib.pofile(str(path), encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}\n  expected a gettext catalog (.po)") from error
    for entry in entries:
        if entry.msgid and entry.msgstr and not (entry.obsolete or entry.fuzzy or entry.msgid_plural):
            yield Pair(entry.msgid, entry.msgstr, language)


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
            found = [path] if path.exists() else []
        if not found:
            raise DataError(
                f"no pairs at {path}{searched_folder(path)}\n  expected a .jsonl or .tsv file, or a folder of them"
            )
        for file in found:
            yield from _json_lines(file) if file.suffix.lower() in JSON_LINES else _tabs(file)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_regular(path) as file:
        start = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, decoded(line, "utf-8", f"{path}, line {number}", start=start).rstrip("\r\n")
            start += len(line)


def _json_lines(path: Path) -> Iterator[Pair]:
    for number, line in _lines(path):
        record = json_object(line, partial(_malformed, path, number))
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
