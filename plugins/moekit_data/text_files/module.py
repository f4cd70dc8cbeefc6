"""Text by domain from a user's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moekit.errors import DataError
from moekit_data.corpus import Document, Domain, count, cut, shuffled
from moekit_data.text import TextData
from moekit_data.text_files import TextFiles
from moekit_data.text_files.reading import read


class TextFilesData(TextData):
    """A user's own text, split by file or record: the same one falls into the same split every time.

    With a ``validation_path`` everything in ``path`` trains, except what is also there. Without it, each domain gives
    whole files (or records) to validation, in an order that a hash of their names decides, until they make up the
    share asked for; a domain of a single file gives the end of it.
    """

    def __init__(self, spec: TextFiles) -> None:
        super().__init__(spec)
        self.spec: TextFiles = spec

    def read(self) -> tuple[list[Domain], dict[str, str]]:
        """Every domain of ``path``, in order of name.

        Raises:
            DataError: a file is missing, unreadable, binary or malformed; all is empty; ``validation_path`` has a
                domain that ``path`` has not.
        """
        seen: set[bytes] = set()
        held_out = self._collect(self.spec.validation_path, seen) if self.spec.validation_path else None
        given = self._collect(self.spec.path, seen)
        if held_out is not None:
            self._refuse_strangers(given, held_out)
        domains: list[Domain] = []
        for name in sorted(given):
            train = given[name].documents
            if held_out is None:
                train, validation = _split(train, self.spec.validation)
            else:
                validation = held_out[name].documents if name in held_out else []
            domains.append(Domain(name, _texts(train), _texts(validation), given[name].notes()))
        return domains, {}

    def _collect(self, path: str, seen: set[bytes]) -> dict[str, _Part]:
        """The texts of each domain, up to the size allowed, without those in ``seen``."""
        limit = round(self.spec.megabytes * 1e6)
        parts: dict[str, _Part] = {}
        for name, document in read(Path(path), self.spec.suffixes, limit):
            if document.text.strip():
                parts.setdefault(name, _Part(limit)).add(document, seen)
        found = {name: part for name, part in parts.items() if part.documents}
        if parts and not found:
            raise DataError(f"{path} holds nothing that is not also in {self.spec.validation_path}")
        if not found:
            raise DataError(f"no text in {path}: all of it is empty\n  expected UTF-8 text")
        return found

    def _refuse_strangers(self, given: dict[str, _Part], held_out: dict[str, _Part]) -> None:
        strangers = sorted(set(held_out) - set(given))
        if strangers:
            raise DataError(
                f"{self.spec.validation_path} has text of {', '.join(strangers)}, but {self.spec.path} has none\n"
                f"  expected its domains: {', '.join(sorted(given))} (subfolders, or 'domain' of a record)"
            )


@dataclass
class _Part:
    """The texts of one domain, as they are read.

    Attributes:
        room: bytes that may still be added.
        documents: what was added.
        duplicates: how many texts had been seen before.
        is_cut: whether some text found no room.
    """

    room: int
    documents: list[Document] = field(default_factory=list)
    duplicates: int = 0
    is_cut: bool = False

    def add(self, document: Document, seen: set[bytes]) -> None:
        digest = hashlib.sha256(document.text).digest()
        if digest in seen:
            self.duplicates += 1
            return
        seen.add(digest)
        kept = cut(document.text, self.room)
        self.room -= len(kept)
        if len(kept) < len(document.text):
            self.is_cut, self.room = True, 0
        if kept:
            self.documents.append(Document(document.key, kept))

    def notes(self) -> list[str]:
        notes = [f"{count(self.duplicates, 'exact duplicate')} left out"] if self.duplicates else []
        return [*notes, "more text than data.megabytes allows: the rest left out"] if self.is_cut else notes


def _split(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: whole ones, or the end of the only one."""
    total = sum(len(document.text) for document in documents)
    if len(documents) == 1:
        (only,) = documents
        head = cut(only.text, round(total * (1 - share)))
        return [Document(only.key, head)], [Document(only.key, only.text[len(head) :])]
    by_key = {document.key: document for document in documents}
    train: list[Document] = []
    validation: list[Document] = []
    size = 0
    for key in shuffled(by_key):
        if size < total * share and len(validation) < len(documents) - 1:
            validation.append(by_key[key])
            size += len(by_key[key].text)
        else:
            train.append(by_key[key])
    return train, validation


def _texts(documents: Iterable[Document]) -> list[bytes]:
    return [document.text for document in documents]
