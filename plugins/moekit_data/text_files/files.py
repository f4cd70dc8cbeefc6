"""Which files a user's text is in, the segments in which they are read, and how a compressed one is opened."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from moekit.errors import DataError
from moekit.files import open_regular

Form = Literal["text", "lines", "parquet", "arrow"]
JSON_LINES = (".jsonl", ".ndjson")
JSON_LINES = (".jsonl", ".ndjson")
FORMS: dict[str, Form] = {".jsonl": "lines", ".ndjson": "lines", ".parquet": "parquet", ".arrow": "arrow"}
"""How files are read, by their suffix; all others are text."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
DEFAULT_DOMAIN = "text"
"""The domain of text that is in no subfolder and whose record names none."""
PASSAGE = 1 << 16
"""A text file is read in passages of about this many bytes, each of which trains or validates as a whole."""
SEGMENT = 128 * PASSAGE
"""Bytes of a file that one process reads at a time."""
SAME_BYTES = {"utf-8", "ascii", "iso8859-1"}
"""Encodings in which a line ends with the byte of a line feed, and no other character has this byte."""


@dataclass(frozen=True)
class Segment:
    """A part of a file that can be read without the others.

    Attributes:
        path: the file.
        domain: of text that names none itself.
        form: how it is read.
        start, end: the bytes whose lines or passages begin in it; ``end`` is None for all to the end of the file.
        size: bytes, for a progress bar.
    """

    path: Path
    domain: str
    form: Form
    start: int
    end: int | None
    size: int


def find(path: Path, suffixes: Sequence[str]) -> list[tuple[Path, str]]:
    """The files at or below a path, in order of name, each with the domain that its folder gives it.

    Hidden files and folders are skipped. The first subfolder's name is the domain.

    Raises:
        DataError: nothing is there, or a folder has no such file.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(
                f"no such file or folder: {path}{searched_folder(path)}\n"
                "  expected a text file, a .jsonl file, or a folder of them"
            )
        return [(path, DEFAULT_DOMAIN)]
    wanted = {suffix.lower() for suffix in suffixes}
    found = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if suffix_of(file) in wanted and not file.is_dir() and not any(part.startswith(".") for part in parts):
            found.append((file, parts[0] if len(parts) > 1 else DEFAULT_DOMAIN))
    if not found:
        raise DataError(
            f"no text in folder {path}\n  expected files that end with {', '.join(suffixes)} (option data.suffixes)"
        )
    return found


def searched_folder(path: Path) -> str:
    """The line of an error about a missing file that names the folder a relative path starts from."""
    return "" if path.is_absolute() else f"\n  looked in {Path.cwd()}, where the command runs"


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression: ``.txt`` of ``a.TXT.gz``; empty if there is none."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def segments(path: Path, domain: str, encoding_name: str) -> list[Segment]:
    """The segments of a file: several only of an uncompressed one whose lines can be found from the middle.

    Args:
        path: the file.
        domain: of text that names none.
        encoding_name: of text files, as ``codecs.lookup`` names it.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    form = FORMS.get(suffix_of(path), "text")
    divisible = form == "lines" or (form == "text" and encoding_name in SAME_BYTES)
    if path.suffix.lower() in COMPRESSED or not divisible or size <= SEGMENT:
        return [Segment(path, domain, form, 0, None, size)]
    starts = range(0, size, SEGMENT)
    return [
        Segment(path, domain, form, start, None if start + SEGMENT >= size else start + SEGMENT, SEGMENT)
        for start in starts
    ]


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read its bytes, decompressed.

    Raises:
        OSError: it cannot be opened.
        DataError: Python cannot decompress it without a further package.
    """
    openers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
        ".bz2": bz2.BZ2File,
        ".xz": lzma.LZMAFile,
        ".zst": lambda raw: _zstandard(raw, path),
    }
    with open_regular(path) as raw:
        opener = openers.get(path.suffix.lower())
        if opener is None:
            yield raw
            return
        with opener(raw) as plain:
            yield plain


def _zstandard(raw: IO[bytes], path: Path) -> Any:
    try:
        from compression import zstd  # from Python 3.14 on
    except ImportError:
        try:
            import zstandard
        except ImportError:
            raise DataError(
                f"{path} is compressed by Zstandard, which Python reads from 3.14 on\n"
                "  expected the package: pip install 'moekit[datasets]' (or zstandard alone), or a .gz file"
            ) from None
        return io.BufferedReader(_Zstandard(raw, zstandard.ZstdDecompressor().decompressobj), 1 << 17)
    return zstd.ZstdFile(raw)


class _Zstandard(io.RawIOBase):
    """The content of all frames. The reader of ``zstandard`` itself ends a truncated file without an error.

    Args:
        raw: the compressed bytes.
        frame: makes the decompressor of a frame.
    """

    def __init__(self, raw: IO[bytes], frame: Callable[[], Any]) -> None:
        self._pieces = _frames(raw, frame)
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, in part perhaps; 0 at the end."""
        while not self._held and (piece := next(self._pieces, None)) is not None:
            self._held = memoryview(piece)
        size = min(len(buffer), len(self._held))
        buffer[:size], self._held = self._held[:size], self._held[size:]
        return size


def _frames(raw: IO[bytes], start: Callable[[], Any]) -> Iterator[bytes]:
    frame, packed = None, b""
    while packed := packed or raw.read(1 << 13):
        frame = frame or start()
        yield frame.decompress(packed)
        packed = frame.unused_data
        frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends before its last frame does")
