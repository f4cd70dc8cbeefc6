"""Text by domain from a user's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from moekit.errors import DataError
from moekit_data.corpus import Document, Domain, cut, shuffled
from moekit_data.text import TextData
from moekit_data.text_files import TextFiles
from moekit_data.text_files.reading import read


class TextFilesData(TextData):
    """A user's own text, split by file or record: the same one falls into the same split every time.

    With a ``validation_path`` everything in ``path`` trains. Without it, each domain gives whole files (or records)
    to validation, in an order that a hash of their names decides, until they make up the share asked for; a domain
    of a single file gives the end of it.
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
        domains: dict[str, Domain] = {}
        held_out = self._documents(self.spec.validation_path, domains, seen) if self.spec.validation_path else None
        given = set(domains)
        for name, documents in self._documents(self.spec.path, domains, seen).items():
            if held_out is None:
                train, validation = _split(documents, self.spec.validation)
            else:
                train, validation = documents, held_out.get(name, [])
            domains[name].train = _texts(train)
            domains[name].validation = _texts(validation)
        strangers = sorted(name for name in given if not domains[name].train)
        if strangers:
            raise DataError(
                f"{self.spec.validation_path} has text of {', '.join(strangers)}, but {self.spec.path} has none\n"
                "  expected the same domains (subfolders, or 'domain' of a record) in both"
            )
        return [domains[name] for name in sorted(domains)], {}

    def _documents(self, path: str, domains: dict[str, Domain], seen: set[bytes]) -> dict[str, list[Document]]:
        """The texts of each domain, up to the size allowed, without exact duplicates; makes and notes in ``domains``."""
        limit = round(self.spec.megabytes * 1e6)
        found: dict[str, list[Document]] = {}
        room: dict[str, int] = {}
        duplicates: dict[str, int] = {}
        for name, document in read(Path(path), self.spec.suffixes):
            if not document.text.strip():
                continue
            digest = hashlib.sha256(document.text).digest()
            if digest in seen:
                duplicates[name] = duplicates.get(name, 0) + 1
                continue
            seen.add(digest)
            domain = domains.setdefault(name, Domain(name))
            if name not in room:
                room[name] = limit
                found[name] = []
            kept = cut(document.text, room[name])
            if kept:
                found[name].append(Document(document.key, kept))
            if len(kept) < len(document.text) and room[name]:
                domain.notes.append(f"cut at {self.spec.megabytes:g} MB (option data.megabytes)")
            room[name] = room[name] - len(kept) if len(kept) == len(document.text) else 0
        if not found:
            raise DataError(f"no text in {path}: every file is empty\n  expected at least {self.spec.seq + 1} tokens")
        for name, count in duplicates.items():
            if name in domains:
                domains[name].notes.append(f"{count:,} exact duplicates left out")
        return found


def _split(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: whole ones, or the end of the only one."""
    total = sum(len(document.text) for document in documents)
    if len(documents) == 1:
        (only,) = documents
        head = cut(only.text, round(total * (1 - share)))
        return [Document(only.key, head)], [Document(only.key, only.text[len(head) :])]
    by_key = {document.key: document for document in documents}
    train, validation, size = [], [], 0
    for key in shuffled(by_key):
        if size < total * share and len(validation) < len(documents) - 1:
            validation.append(by_key[key])
            size += len(by_key[key].text)
        else:
            train.append(by_key[key])
    return train, validation


def _texts(documents: Iterable[Document]) -> list[bytes]:
    return [document.text for document in documents]
