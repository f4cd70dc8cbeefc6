"""A corpus: cleaned documents by domain, each in the training or the validation split, without exact duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_FILE = 2_000_000
"""Bytes that are read of one file of the installation, at most."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        key: its relative name, which alone determines its split and its place in the order.
        text: UTF-8, without the byte 0.
    """

    key: str
    text: bytes


@dataclass
class Split:
    """Documents that are collected up to a size.

    Attributes:
        room: bytes that may still be added.
        documents: what was added.
        duplicates: how many texts had been seen before.
    """

    room: int
    documents: list[Document] = field(default_factory=list)
    duplicates: int = 0

    def add(self, document: Document, seen: set[bytes]) -> None:
        """Adds a document whose text is new, truncated to the room that is left."""
        if not is_new(document.text, seen):
            self.duplicates += 1
            return
        kept = truncate(document.text, self.room)
        self.room -= len(kept)
        if len(kept) < len(document.text):
            self.room = 0
        if kept:
            self.documents.append(Document(document.key, kept))


@dataclass
class Domain:
    """One kind of text.

    Attributes:
        name: as in the spec, or of the folder it came from.
        train, validation: texts of either split.
        notes: what was skipped, and why.
    """

    name: str
    train: list[bytes] = field(default_factory=list)
    validation: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count(number: int, noun: str) -> str:
    """``1 text``, ``1,200 texts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def skipped_duplicates(number: int) -> list[str]:
    """The note that so many exact duplicates were skipped; none for 0."""
    return [f"{count(number, 'exact duplicate')} skipped"] if number else []


def texts(documents: Iterable[Document]) -> list[bytes]:
    """The texts of documents, in their order."""
    return [document.text for document in documents]


def is_new(text: bytes, seen: set[bytes]) -> bool:
    """Whether a text is not among the checksums ``seen``; adds it to them."""
    digest = hashlib.sha256(text).digest()
    is_first = digest not in seen
    seen.add(digest)
    return is_first


def fingerprint(texts: Iterable[bytes]) -> str:
    """The checksum of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8))
        digest.update(text)
    return digest.hexdigest()


def to_utf8(raw: bytes) -> bytes | None:
    """File contents as UTF-8, without a byte-order mark; None for binary contents and for other encodings."""
    if b"\0" in raw:
        return None
    try:
        return raw.decode("utf-8-sig").encode()
    except UnicodeDecodeError:
        return None


def truncate(text: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes of UTF-8, without half a character at the end."""
    if len(text) <= limit:
        return text
    while limit > 0 and text[limit] & 0xC0 == 0x80:  # a continuation byte: its character started before
        limit -= 1
    return text[:limit]


def hash_fraction(key: str, salt: str = "split") -> float:
    """A number in [0, 1) that depends on ``key`` and ``salt`` alone: the same on every machine."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def hash_of(text: bytes) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48


def shuffled(keys: Iterable[str]) -> list[str]:
    """``keys`` in a pseudo-random order that is the same every time."""
    return sorted(keys, key=lambda key: (hash_fraction(key, "order"), key))


class Filler:
    """Fills domains with documents up to equal sizes; skips texts that an earlier domain has.

    Args:
        limit: bytes per domain, both splits together.
        validation: share of them for validation. A document validates when ``hash_fraction(key) < validation``.
    """

    def __init__(self, limit: int, validation: float) -> None:
        self._room_validation = round(limit * validation)
        self._room_train = limit - self._room_validation
        self._validation = validation
        self._seen: set[bytes] = set()

    def fill(self, name: str, documents: Iterable[Document]) -> Domain:
        """Reads documents in order until both splits are full; truncates the last one of each to fit."""
        train, validation = Split(self._room_train), Split(self._room_validation)
        for document in documents:
            split = validation if hash_fraction(document.key) < self._validation else train
            if split.room and document.text.strip():
                split.add(document, self._seen)
                if not train.room and not validation.room:
                    break
        notes = skipped_duplicates(train.duplicates + validation.duplicates)
        return Domain(name, texts(train.documents), texts(validation.documents), notes)
