"""The cache of tokenised text: a folder for each corpus and tokenizer, complete or absent, read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from moekit.errors import DataError
from moekit.files import cache_folder, lock, make_directory, replace_file
from moekit_data.mapped import MappedTokens, Stream
from moekit_data.text_files.jobs import TRAIN, VALIDATION, Run

FORMAT = 1
"""Of the cache, and of how text is divided and split. A change makes everything be tokenised again."""
META = "corpus.json"
SPLITS = {TRAIN: "train", VALIDATION: "validation"}


@dataclass(frozen=True)
class Kept:
    """What the cache knows of a domain: its name, and of both splits the tokens, bytes of text and texts."""

    name: str
    tokens: tuple[int, int]
    num_bytes: tuple[int, int]
    num_texts: tuple[int, int]
    duplicates: int


def folder(option: str | None) -> Path:
    """The folder of the cache."""
    return Path(option).expanduser() if option else cache_folder() / "text"


def key(*parts: Any) -> str:
    """A short checksum of plain values."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def alone(root: Path, name: str) -> Iterator[None]:
    """Waits until no other process of this machine works on what has this name; the others then find it done.

    The name is of files, which are read, or of a text in tokens, which is written: different files may hold one text.

    Raises:
        DataError: the folder cannot be written to.
    """
    try:
        make_directory(root)
        file = (root / f"{name}.lock").open("wb")
    except OSError as error:
        raise cannot_write(root, error) from error
    with file:
        lock(file, wait=True)  # without locks each process does the work, and the first to end wins
        yield


def cannot_write(root: Path, error: OSError) -> DataError:
    """The error about a cache that cannot be written to."""
    return DataError(
        f"cannot write tokenised text to {error.filename or root}: {error.strerror or error}\n"
        "  expected a folder with room for it: option data.cache"
    )


def remembered(root: Path, name: str) -> Any:
    """A plain value under a name, such as the fingerprint of files; None if there is none."""
    try:
        return json.loads((root / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None


def remember(root: Path, name: str, value: Any) -> None:
    """Keeps a plain value.

    Raises:
        DataError: the folder cannot be written to.
    """
    text = json.dumps(value)
    try:
        replace_file(root / f"{name}.json", lambda path: path.write_text(text))
    except OSError as error:
        raise cannot_write(root, error) from error


class Found(NamedTuple):
    """A corpus in the cache: each domain with the tokens of both splits, what was skipped, and the fingerprint."""

    domains: list[tuple[Kept, Stream, Stream]]
    notes: dict[str, str]
    fingerprint: str


def opened(path: Path) -> Found | None:
    """The corpus of a folder; None if it is absent or damaged."""
    try:
        meta = json.loads((path / META).read_text())
        dtype = str(meta["dtype"])
        found = []
        for number, each in enumerate(meta["domains"]):
            tokens, num_bytes, num_texts = (tuple(each[name]) for name in ("tokens", "num_bytes", "num_texts"))
            kept = Kept(each["name"], tokens, num_bytes, num_texts, each["duplicates"])
            streams: list[Stream] = []
            for split, count in zip(SPLITS, kept.tokens, strict=True):
                file = path / f"{number}.{SPLITS[split]}"
                stream = MappedTokens(file, dtype) if count else torch.zeros(0, dtype=torch.int64)
                if len(stream) != count:
                    return None
                streams.append(stream)
            found.append((kept, streams[0], streams[1]))
        return Found(found, dict(meta["notes"]), str(meta["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Writer:
    """Writes the folder of a corpus; it appears when ``publish`` is called.

    Args:
        path: where it will be.
        domains: their names.
        dtype: of the tokens.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, domains: list[str], dtype: str) -> None:
        for old in path.parent.glob(f"{path.name}.*.tmp"):
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed: this one has the lock
        self._path = path
        self._names = domains
        self._dtype = dtype
        self._tokens = np.zeros((len(domains), 2), dtype=np.int64)
        self.work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        make_directory(self.work)

    def part(self, number: int) -> Path:
        """Where a process writes the tokens of a segment."""
        return self.work / f"part-{number}"

    def add(self, part: Path, runs: Iterable[Run]) -> None:
        """Appends the tokens of a segment to those of its domains, and deletes the part.

        Raises:
            OSError: the disk is full.
        """
        numbers = {name: i for i, name in enumerate(self._names)}
        size = np.dtype(self._dtype).itemsize
        with part.open("rb") as source:
            for run in runs:
                number = numbers[run.domain]
                with (self.work / f"{number}.{SPLITS[run.split]}").open("ab") as target:
                    left = run.tokens * size
                    while left and (raw := source.read(min(left, 1 << 20))):
                        target.write(raw)
                        left -= len(raw)
                self._tokens[number, list(SPLITS).index(run.split)] += run.tokens
        part.unlink()

    def publish(
        self,
        fingerprint: str,
        about: Mapping[str, tuple[tuple[int, int], tuple[int, int], int]],
        notes: Mapping[str, str],
    ) -> None:
        """Writes what is known of each domain (bytes, texts, duplicates), and moves the folder to its place.

        Raises:
            OSError: it cannot be written.
        """
        kept = [
            Kept(name, (int(train), int(held)), *about[name])
            for name, (train, held) in zip(self._names, self._tokens, strict=True)
        ]
        domains = [asdict(each) for each in kept]
        text = json.dumps({"fingerprint": fingerprint, "dtype": self._dtype, "domains": domains, "notes": dict(notes)})
        replace_file(self.work / META, lambda path: path.write_text(text))
        if opened(self._path) is not None:  # another machine was faster
            shutil.rmtree(self.work)
            return
        shutil.rmtree(self._path, ignore_errors=True)
        self.work.rename(self._path)

    def discard(self) -> None:
        """Deletes what was written."""
        shutil.rmtree(self.work, ignore_errors=True)
