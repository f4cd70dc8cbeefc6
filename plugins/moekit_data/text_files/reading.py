"""Reads a user's text, and says exactly what is wrong with a file that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from moekit.errors import DataError
from moekit_data.corpus import Document, clean

JSON_LINES = (".jsonl", ".ndjson")
DEFAULT_DOMAIN = "text"
"""The domain of text that lies in no subfolder and whose record names none."""


def read(path: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Document]]:
    """Every text below ``path`` with its domain, in order of name; nothing is read before its turn.

    Args:
        path: a text file, a JSON lines file, or a folder. The first subfolder's name is the domain.
        suffixes: which files of a folder are read, upper or lower case; hidden files and folders are passed over.

    Raises:
        DataError: nothing there, nothing readable, binary contents, or a malformed JSON line.
    """
    path = path.expanduser()
    if path.is_dir():
        yield from _folder(path, suffixes)
    elif path.exists():
        yield from _file(path, path.name, DEFAULT_DOMAIN)
    else:
        raise DataError(f"no such file or folder: {path}\n  expected a text file, a .jsonl file, or a folder of them")


def _folder(root: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Document]]:
    wanted = {suffix.lower() for suffix in suffixes}
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in wanted
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not found:
        raise DataError(
            f"no text in folder {root}\n  expected files that end with {', '.join(suffixes)} (option data.suffixes)"
        )
    for path in found:
        relative = path.relative_to(root)
        domain = relative.parts[0] if len(relative.parts) > 1 else DEFAULT_DOMAIN
        yield from _file(path, relative.as_posix(), domain)


def _file(path: Path, key: str, domain: str) -> Iterator[tuple[str, Document]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}\n  expected a readable text file") from error
    text = clean(raw)
    if text is None:
        raise DataError(f"not a text file: {path} (it contains the byte 0)\n  expected UTF-8 text")
    if path.suffix.lower() in JSON_LINES:
        yield from _records(path, key, text, domain)
    else:
        yield domain, Document(key, text)


def _records(path: Path, key: str, lines: bytes, domain: str) -> Iterator[tuple[str, Document]]:
    for number, line in enumerate(lines.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise _malformed(path, number, f"not JSON ({error})") from error
        if not isinstance(record, dict):
            raise _malformed(path, number, f"a JSON {type(record).__name__}, not an object")
        if not isinstance(record.get("text"), str):
            found = "no 'text'" if "text" not in record else f"'text' is a {type(record['text']).__name__}"
            raise _malformed(path, number, found)
        if not isinstance(record.get("domain", domain), str) or not record.get("domain", domain):
            raise _malformed(path, number, f"'domain' is {record['domain']!r}")
        text = clean(record["text"].encode("utf-8", errors="replace"))
        if text is None:
            raise _malformed(path, number, "'text' contains the character U+0000")
        yield record.get("domain", domain), Document(f"{key}:{number}", text)


def _malformed(path: Path, line: int, found: str) -> DataError:
    return DataError(f'{path}, line {line}: {found}\n  expected {{"text": "...", "domain": "..."}}, domain optional')
