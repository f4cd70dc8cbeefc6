"""Your own text: a file, a folder whose subfolders are domains, or JSON lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from moekit.spec.fields import option
from moekit_data.specs import TextSpec


class TextFiles(TextSpec):
    """Options of a user's own text. JSON lines hold ``text`` and, where there are several kinds, ``domain``."""

    path: str = option(
        help="a text file, a .jsonl file, or a folder (each subfolder is a domain); relative to where moekit runs"
    )
    validation_path: str | None = option(None, "text to validate with, organised like path; default: a share of path")
    suffixes: list[str] = option([".txt", ".md", ".jsonl"], "which files of a folder are read")
    encoding: str = option("utf-8", "encoding of text files, such as latin-1; JSON lines are UTF-8")
    megabytes: float = option(200.0, "the most that is read per domain and split, MB (10^6 bytes)", gt=0)

    def check(self) -> Iterable[str]:
        """Paths must not be empty, and suffixes must begin with a dot."""
        if not self.path.strip():
            yield "path is empty; give a text file, a .jsonl file or a folder"
        if self.validation_path is not None and not self.validation_path.strip():
            yield "validation_path is empty; give a file or a folder, or null"
        try:
            is_text = isinstance(codecs.getincrementaldecoder(self.encoding)().decode(b""), str)
        except (LookupError, ValueError):
            is_text = False
        if not is_text:
            yield f"encoding={self.encoding!r} is unknown; give one of Python's, such as utf-8, latin-1 or utf-16"
        if not self.suffixes or not all(s.startswith(".") and len(s) > 1 for s in self.suffixes):
            yield f"suffixes={self.suffixes!r} must be file endings such as .txt"
