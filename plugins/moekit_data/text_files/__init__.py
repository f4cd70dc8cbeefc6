"""Your own text: a file, a folder whose subfolders are domains, JSON lines, Parquet or Arrow; also compressed."""

import codecs
from collections.abc import Iterable

from moekit.spec.fields import option
from moekit_data.specs import DomainTextSpec


class TextFiles(DomainTextSpec):
    """Options of a user's own text, of any size. Records hold ``text`` and, where there are several kinds, ``domain``.

    The text is tokenised once, into files in ``cache`` that training maps into memory.
    """

    path: str = option(
        help="a file of text or records, or a folder (each subfolder is a domain); relative to where moekit runs"
    )
    validation_path: str | None = option(None, "text to validate with, organised like path; default: a share of path")
    suffixes: list[str] = option(
        [".txt", ".md", ".jsonl", ".parquet", ".arrow"],
        "which files of a folder are read; also compressed ones, such as .txt.gz",
    )
    encoding: str = option("utf-8", "encoding of text files, such as latin-1; JSON lines are UTF-8")
    text_key: str = option("text", "the key, or column, of a record's text")
    domain_key: str = option("domain", "the key, or column, of a record's domain; a record may lack it")
    learn_megabytes: float = option(
        64.0, "training text that a tokenizer learns from, at most, MB (10^6 bytes), from all parts of it", gt=0
    )
    processes: int | None = option(None, "processes that tokenise; default: a process for each core, at most 16", ge=1)
    cache: str | None = option(
        None, "folder of tokenised text; default: the variable MOEKIT_CACHE, or moekit in the user's folder of caches"
    )

    def check(self) -> Iterable[str]:
        """Paths and keys must not be empty, and suffixes must begin with a dot."""
        yield from super().check()
        if not self.path.strip():
            yield "path is empty; give a file of text or records, or a folder"
        if self.validation_path is not None and not self.validation_path.strip():
            yield "validation_path is empty; give a file or a folder, or null"
        if self.cache is not None and not self.cache.strip():
            yield "cache is empty; give a folder, or null"
        if not self.text_key or not self.domain_key or self.text_key == self.domain_key:
            yield f"text_key={self.text_key!r} and domain_key={self.domain_key!r} must be two different names"
        try:
            is_text = isinstance(codecs.getincrementaldecoder(self.encoding)().decode(b""), str)
        except (LookupError, ValueError):
            is_text = False
        if not is_text:
            yield f"encoding={self.encoding!r} is unknown; give one of Python's, such as utf-8, latin-1 or utf-16"
        if not self.suffixes or not all(s.startswith(".") and len(s) > 1 for s in self.suffixes):
            yield f"suffixes={self.suffixes!r} must be file endings such as .txt"
