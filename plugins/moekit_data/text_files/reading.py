"""Reads the texts of a segment, and reports exactly what is wrong with one that cannot be used."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from moekit.errors import DataError
from moekit_data.corpus import to_utf8
from moekit_data.text_files.faults import Reading, line_at, malformed_record, undecodable
from moekit_data.text_files.files import COMPRESSED, PASSAGE, SAME_BYTES, Segment, open_plain

WINDOW = 1 << 12
"""A passage ends with the first line that ends within so many bytes after its size; else within a line."""
LONGEST_LINE = 1 << 26
"""Bytes of the longest JSON line."""


def read(segment: Segment, how: Reading) -> Iterator[tuple[str, bytes]]:
    """The domain and the UTF-8 text of each record, or of each passage of a text file; read when it is requested.

    The passages of a file, in the order of its segments, make up the file.

    Raises:
        DataError: the file cannot be read, is damaged or binary, holds bytes that the encoding lacks, or a malformed
            record. The message names the file, and the line or row.
    """
    path = segment.path
    try:
        if segment.form in ("parquet", "arrow"):
            from moekit_data.text_files.columns import rows  # loaded for such files alone

            for number, row in enumerate(rows(segment, how), start=1):
                yield _record(row, segment.domain, how, partial(malformed_record, how, f"{path}, row {number:,}"))
            return
        with open_plain(path) as file:
            yield from _lines(file, segment, how) if segment.form == "lines" else _text(file, segment, how)
    except DataError:
        raise
    except OSError as error:
        where = error.filename or path
        raise DataError(f"cannot read {where}: {error.strerror or error}\n  expected a readable text file") from error
    except Exception as error:  # each decompressor has exceptions of its own
        if path.suffix.lower() not in COMPRESSED:
            raise
        raise DataError(f"damaged: {path}: {error}\n  expected a complete {path.suffix} file") from error


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


def decoded(raw: bytes, encoding: str, name: str, *, start: int = 0) -> str:
    """Bytes as text, without a byte-order mark.

    Args:
        raw: the bytes.
        encoding: one of Python's.
        name: of the file, for messages.
        start: offset of the bytes in the file.

    Raises:
        DataError: a byte that the encoding lacks; names the file and the offset.
    """
    try:
        return codecs.getincrementaldecoder(encoding)(errors="strict").decode(raw, final=True).removeprefix("\ufeff")
    except UnicodeError as error:
        raise undecodable(error, encoding, name, start) from error


def _text(file: IO[bytes], segment: Segment, how: Reading) -> Iterator[tuple[str, bytes]]:
    path, in_place = segment.path, codecs.lookup(how.encoding).name in SAME_BYTES
    source = file.read if in_place else _Transcoder(file, how.encoding, path).read
    if segment.start:
        file.seek(segment.start - 1)
    before = 0  # lines, where the file cannot be read from the middle
    for start, raw in _passages(source, segment.start, segment.end):
        text = raw
        if in_place:
            try:
                text = raw.decode(how.encoding).removeprefix("" if start else "\ufeff").encode()
            except UnicodeError as error:
                line = line_at(path, start + getattr(error, "start", 0), how.encoding)
                raise undecodable(error, how.encoding, f"{path}, line {line:,}", start) from error
        if (zero := text.find(b"\0")) >= 0:
            before = line_at(path, start, how.encoding) - 1 if in_place else before
            line = before + text.count(b"\n", 0, zero) + 1
            raise DataError(
                f"not a text file: {path}, line {line:,} (it contains the byte 0)\n  expected {how.encoding} text"
            )
        before += 0 if in_place else text.count(b"\n")
        yield segment.domain, text


def _passages(read: Callable[[int], bytes], start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """The passages that begin at or after ``start``, a multiple of ``PASSAGE``, up to ``end``, with their offsets.

    Where a passage ends depends only on the bytes near a multiple of ``PASSAGE``: it can be found from the middle.
    """
    held, begin = b"", 0
    if start:
        held = read(1 + WINDOW)
        cut = _cut(held, 1)
        held, begin = held[cut:], start - 1 + cut
    while end is None or start < end:
        start += PASSAGE
        held += read(start + WINDOW - begin - len(held))
        cut = _cut(held, start - begin) if begin + len(held) > start else len(held)
        if cut:
            yield begin, held[:cut]
        if begin + len(held) <= start:
            return
        held, begin = held[cut:], begin + cut


def _cut(data: bytes, at: int) -> int:
    """Where a passage ends: after the line that ends next, or in a long line before the next character."""
    line = data.find(b"\n", at - 1, at + WINDOW)
    if line >= 0:
        return line + 1
    near = data[at : at + 4]
    inside = next((i for i, byte in enumerate(near) if byte & 0xC0 != 0x80), len(near))
    return at if inside == 4 else at + inside  # four such bytes are not UTF-8, but another encoding


class _Transcoder:
    """A file's text as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str, path: Path) -> None:
        self._file, self._encoding, self._path = file, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
        self._held = b""
        self._offset = 0  # of the file
        self._is_start = True

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the end."""
        pieces, length = [self._held], len(self._held)
        while length < size:
            raw = self._file.read(PASSAGE)
            self._offset += len(raw)
            try:
                text = self._decoder.decode(raw, final=not raw)
            except UnicodeError as error:
                start = self._offset - len(getattr(error, "object", raw))
                line = line_at(self._path, start + getattr(error, "start", 0), self._encoding)
                raise undecodable(error, self._encoding, f"{self._path}, line {line:,}", start) from error
            if text and self._is_start:
                text, self._is_start = text.removeprefix("\ufeff"), False
            pieces.append(text.encode())
            length += len(pieces[-1])
            if not raw:
                break
        held = b"".join(pieces)
        self._held = held[size:]
        return held[:size]


def _lines(file: IO[bytes], segment: Segment, how: Reading) -> Iterator[tuple[str, bytes]]:
    path, start, number = segment.path, segment.start, 0
    if start:
        file.seek(start - 1)
        start -= 1
        while (skipped := file.readline(PASSAGE)) and not skipped.endswith(b"\n"):
            start += len(skipped)
        start += len(skipped)

    def place() -> str:  # lines are counted from the start of the file only for an error
        before = line_at(path, segment.start and first, "utf-8") - 1
        return f"{path}, line {before + number:,}"

    first = start
    while (segment.end is None or start < segment.end) and (line := file.readline(LONGEST_LINE)):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise malformed_record(how, place(), f"longer than {LONGEST_LINE:,} bytes")
        if line.strip():
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise undecodable(error, "utf-8", place(), start) from error

            def malformed(found: str) -> DataError:
                return malformed_record(how, place(), found)

            record = json_object(text.removeprefix("\ufeff"), malformed)
            yield _record(record, segment.domain, how, malformed)
        start += len(line)


def _record(
    record: Mapping[str, Any], domain: str, how: Reading, malformed: Callable[[str], DataError]
) -> tuple[str, bytes]:
    named = record.get(how.domain_key)
    name = domain if named is None else named
    if not isinstance(name, str) or not name:
        raise malformed(f"'{how.domain_key}' is {name!r}")
    return name, text_in(record, how.text_key, malformed)


def text_in(record: Mapping[str, Any], key: str, malformed: Callable[[str], DataError]) -> bytes:
    """The text of a record, UTF-8. ``malformed`` makes the error from what was found.

    Raises:
        DataError: there is no text under the key, or one that no file could hold.
    """
    found = record.get(key)
    if not isinstance(found, str):
        raise malformed(
            f"no '{key}' among its keys {', '.join(map(repr, record)) or '(none)'}"
            if key not in record
            else f"'{key}' is a {type(found).__name__}"
        )
    try:
        text = to_utf8(found.encode())
    except UnicodeEncodeError as error:
        raise malformed(f"'{key}' contains half a surrogate pair at {error.start:,}") from error
    if text is None:
        raise malformed(f"'{key}' contains the character U+0000")
    return text
