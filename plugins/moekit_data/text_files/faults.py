"""Where a fault in a file is, and what is said of it."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from moekit.errors import DataError
from moekit_data.text_files.files import PASSAGE, open_plain


@dataclass(frozen=True)
class Reading:
    """How texts are read: the options of that name."""

    encoding: str = "utf-8"
    text_key: str = "text"
    domain_key: str = "domain"


def line_at(path: Path, offset: int, encoding: str) -> int:
    """The number of the line, from 1, that holds a byte of a file."""
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    lines = 1
    with open_plain(path) as file:
        while offset > 0 and (raw := file.read(min(offset, PASSAGE))):
            offset -= len(raw)
            lines += decoder.decode(raw).count("\n")
    return lines


def undecodable(error: UnicodeError, encoding: str, name: str, start: int) -> DataError:
    """The error about bytes that an encoding lacks; ``start`` is the offset of those that were decoded."""
    at, found = getattr(error, "start", 0), getattr(error, "reason", str(error))
    wrong = bytes(getattr(error, "object", b""))[at : at + 1].hex()
    return DataError(
        f"not {encoding} text: {name}, byte {start + at:,} (0x{wrong}): {found}\n"
        "  expected text in that encoding; for another, set data.encoding (text files) or convert the file"
    )


def malformed_record(how: Reading, place: str, found: str) -> DataError:
    """The error about a record: where it is, what was found there, and what was expected."""
    return DataError(
        f'{place}: {found}\n  expected {{"{how.text_key}": "...", "{how.domain_key}": "..."}}, '
        f"{how.domain_key} optional (options data.text_key, data.domain_key)"
    )
