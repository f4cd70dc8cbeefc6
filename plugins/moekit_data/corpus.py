"""A corpus: documents by domain, each in the training or the validation split, cleaned and without duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_FILE = 2_000_000
"""Bytes that are read of one file of the installation."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        key: its relative name, which alone decides its split and its place in the order.
        text: UTF-8, without the byte 0.
    """

    key: str
    text: bytes


@dataclass
class Domain:
    """One kind of text.

    Attributes:
        name: as in the spec, or of the folder it came from.
        train, validation: texts of either split.
        notes: what was left out, and why.
    """

    name: str
    train: list[bytes] = field(default_factory=list)
    validation: list[bytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Megabytes and number of texts (files, records) of both splits, and the notes, in a line."""
        train, validation = (
            f"{sum(map(len, part)) / 1e6:.2f} MB in {count(len(part), 'text')}"
            for part in (self.train, self.validation)
        )
        return "; ".join([f"train {train}, validation {validation}", *self.notes])


def count(number: int, noun: str) -> str:
    """``1 text``, ``1,200 texts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clean(raw: bytes) -> bytes | None:
    """File contents as UTF-8 (a byte-order mark goes, what is not UTF-8 becomes U+FFFD); None for binary contents."""
    if b"\0" in raw:
        return None
    return raw.decode("utf-8-sig", errors="replace").encode("utf-8")


def cut(text: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes of UTF-8, without half a character at the end."""
    if len(text) <= limit:
        return text
    while limit > 0 and text[limit] & 0xC0 == 0x80:  # a continuation byte: its character started before
        limit -= 1
    return text[:limit]


def place(key: str, salt: str = "split") -> float:
    """A number in [0, 1) that depends on ``key`` and ``salt`` alone: the same on every machine."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def shuffled(keys: Iterable[str]) -> list[str]:
    """``keys`` in an order that looks random and is the same every time."""
    return sorted(keys, key=lambda key: (place(key, "order"), key))


class Filler:
    """Fills domains with documents up to equal sizes; what was seen in one domain is not taken again in another.

    Args:
        limit: bytes per domain, both splits together.
        validation: share of them for validation. A document goes there when ``place(key) < validation``.
    """

    def __init__(self, limit: int, validation: float) -> None:
        self._room_validation = round(limit * validation)
        self._room_train = limit - self._room_validation
        self._validation = validation
        self._seen: set[bytes] = set()

    def fill(self, name: str, documents: Iterable[Document]) -> Domain:
        """Takes documents in order until both splits are full; the last one taken of each is cut to fit."""
        domain = Domain(name)
        room = {False: self._room_train, True: self._room_validation}
        duplicates = 0
        for document in documents:
            held_out = place(document.key) < self._validation
            if not room[held_out] or not document.text.strip():
                continue
            digest = hashlib.sha256(document.text).digest()
            if digest in self._seen:
                duplicates += 1
                continue
            self._seen.add(digest)
            text = cut(document.text, room[held_out])
            (domain.validation if held_out else domain.train).append(text)
            room[held_out] = room[held_out] - len(text) if len(text) == len(document.text) else 0
            if not any(room.values()):
                break
        if duplicates:
            domain.notes.append(f"{count(duplicates, 'exact duplicate')} left out")
        return domain
