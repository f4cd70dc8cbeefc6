"""Reads a user's text files, and reports exactly what is wrong with one that cannot be used."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moekit.errors import DataError
from moekit.files import open_regular
from moekit_data.corpus import Document, to_utf8

JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
DEFAULT_DOMAIN = "text"
"""The domain of text that is in no subfolder and whose record names none."""


def read(path: Path, suffixes: Sequence[str], limit: int, encoding: str = "utf-8") -> Iterator[tuple[str, Document]]:
    """Every text below ``path`` with its domain, in order of name; each is read when it is requested.

    Args:
        path: a text file, a JSON lines file, or a folder. The first subfolder's name is the domain.
        suffixes: which files of a folder are read, upper or lower case; hidden files and folders are skipped.
        limit: bytes that are read of a text file, or of one line of JSON; a longer line is an error.
        encoding: of text files.

    Raises:
        DataError: nothing there, nothing readable, binary contents, bytes that the encoding lacks, or a malformed JSON
            line.
    """
    path = Path(os.path.expanduser(path))
    try:
        if path.is_dir():
            yield from _folder(path, suffixes, limit, encoding)
        elif path.exists():
            yield from _file(path, path.name, DEFAULT_DOMAIN, limit, encoding)
        else:
            raise DataError(
                f"no such file or folder: {path}{searched_folder(path)}\n"
                "  expected a text file, a .jsonl file, or a folder of them"
            )
    except OSError as error:
        where = error.filename or path
        raise DataError(f"cannot read {where}: {error.strerror or error}\n  expected a readable text file") from error


def searched_folder(path: Path) -> str:
    """The line of an error about a missing file that names the folder a relative path starts from."""
    return "" if path.is_absolute() else f"\n  looked in {Path.cwd()}, where the command runs"


def json_object(line: str, malformed: Callable[[str], DataError]) -> dict[str, Any]:
    """The object in a line of JSON. ``malformed`` makes the error from what was found.

    Raises:
        DataError: something else than an object.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise malformed(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise malformed(f"a JSON {type(record).__name__}, not an object")
    return record


def compressed(path: str, suffixes: Sequence[str]) -> list[str]:
    """The relative names of compressed files in a folder of text, which are not read; none for a single file."""
    root = Path(os.path.expanduser(path))
    return [file.relative_to(root).as_posix() for file in _files(root, COMPRESSED, (*suffixes, ""))]


def _files(root: Path, suffixes: Sequence[str], inner: Sequence[str] = ()) -> list[Path]:
    """The files below a folder that end in one of the suffixes, after one of ``inner``, without hidden ones."""
    wanted, before = ({suffix.lower() for suffix in each} for each in (suffixes, inner))
    return [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in wanted
        and (not inner or Path(path.stem).suffix.lower() in before)
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def _folder(root: Path, suffixes: Sequence[str], limit: int, encoding: str) -> Iterator[tuple[str, Document]]:
    found = _files(root, suffixes)
    if not found:
        raise DataError(
            f"no text in folder {root}\n  expected files that end with {', '.join(suffixes)} (option data.suffixes)"
        )
    for path in found:
        relative = path.relative_to(root)
        domain = relative.parts[0] if len(relative.parts) > 1 else DEFAULT_DOMAIN
        yield from _file(path, relative.as_posix(), domain, limit, encoding)


def _file(path: Path, key: str, domain: str, limit: int, encoding: str) -> Iterator[tuple[str, Document]]:
    if path.suffix.lower() in JSON_LINES:
        yield from _records(path, key, domain, limit)
        return
    with open_regular(path) as file:
        raw = file.read(limit + 1)  # one byte more than is used, so that truncation is noticed
    text = decoded(raw, encoding, str(path), is_whole=len(raw) <= limit)
    if "\0" in text:
        raise DataError(f"not a text file: {path} (it contains the byte 0)\n  expected {encoding} text")
    yield domain, Document(key, text.encode())


def decoded(raw: bytes, encoding: str, name: str, *, is_whole: bool = True, start: int = 0) -> str:
    """Bytes as text, without a byte-order mark.

    Args:
        raw: the bytes, which may end within a character unless they are a whole text.
        encoding: one of Python's.
        name: of the file, for messages.
        is_whole: whether the text ends where the bytes end.
        start: offset of the bytes in the file.

    Raises:
        DataError: a byte that the encoding lacks; names the file and the offset.
    """
    try:
        text = codecs.getincrementaldecoder(encoding)(errors="strict").decode(raw, final=is_whole)
    except UnicodeError as error:
        at, found = getattr(error, "start", 0), getattr(error, "reason", str(error))
        raise DataError(
            f"not {encoding} text: {name}, byte {start + at:,} (0x{raw[at : at + 1].hex()}): {found}\n"
            "  expected text in that encoding; for another, set data.encoding (text files) or convert the file"
        ) from error
    return text.removeprefix("\ufeff")


def _records(path: Path, key: str, domain: str, limit: int) -> Iterator[tuple[str, Document]]:
    with open_regular(path) as file:
        number = start = 0
        while line := file.readline(limit):
            number += 1
            if len(line) == limit and not line.endswith(b"\n"):
                raise _malformed(path, number, f"longer than the {limit:,} bytes that data.megabytes allows")
            if line.strip():
                text = decoded(line, "utf-8", f"{path}, line {number}", start=start)
                name, document = _record(text, domain, path, number)
                yield name, Document(f"{key}:{number}", document)
            start += len(line)


def _record(line: str, domain: str, path: Path, number: int) -> tuple[str, bytes]:
    record = json_object(line, partial(_malformed, path, number))
    if not isinstance(record.get("text"), str):
        found = "no 'text'" if "text" not in record else f"'text' is a {type(record['text']).__name__}"
        raise _malformed(path, number, found)
    name = domain if record.get("domain") is None else record["domain"]
    if not isinstance(name, str) or not name:
        raise _malformed(path, number, f"'domain' is {name!r}")
    try:
        text = to_utf8(record["text"].encode())
    except UnicodeEncodeError as error:
        raise _malformed(path, number, f"'text' contains half a surrogate pair at {error.start:,}") from error
    if text is None:
        raise _malformed(path, number, "'text' contains the character U+0000")
    return name, text


def _malformed(path: Path, line: int, found: str) -> DataError:
    return DataError(f'{path}, line {line}: {found}\n  expected {{"text": "...", "domain": "..."}}, domain optional')
