"""Text by domain from a user's own files."""

from __future__ import annotations

from pathlib import Path

from moekit.errors import DataError
from moekit_data.corpus import Document, Domain, Split, count, shuffled, skipped_duplicates, texts, truncate
from moekit_data.text import TextData
from moekit_data.text_files import TextFiles
from moekit_data.text_files.reading import compressed, read


class TextFilesData(TextData):
    """A user's own text, split by file or record: the same one is in the same split every time.

    With a ``validation_path``, all of ``path`` trains, except copies of validation text. Without it, each domain gives
    whole files (or records) to validation, in the order of a hash of their names, until they make up the ``validation``
    share; a domain of a single file gives the end of it.
    """

    def __init__(self, spec: TextFiles) -> None:
        super().__init__(spec)
        self.spec: TextFiles = spec

    def read(self) -> tuple[list[Domain], dict[str, str]]:
        """Every domain of ``path``, in order of name.

        Raises:
            DataError: a file is missing, unreadable, binary or malformed; all is empty; ``validation_path`` has a
                domain that ``path`` lacks.
        """
        seen: set[bytes] = set()
        held_out = self._collect(self.spec.validation_path, seen) if self.spec.validation_path else None
        given = self._collect(self.spec.path, seen)
        if unknown := sorted(set(held_out or {}) - set(given)):
            raise DataError(
                f"{self.spec.validation_path} has text of {', '.join(unknown)}, but {self.spec.path} has none\n"
                f"  expected its domains: {', '.join(sorted(given))} (subfolders, or 'domain' of a record)"
            )
        domains: list[Domain] = []
        for name in sorted(given):
            train = given[name].documents
            if held_out is None:
                train, validation = _split(train, self.spec.validation)
            else:
                validation = held_out[name].documents if name in held_out else []
            domains.append(Domain(name, texts(train), texts(validation), _notes(given[name])))
        skipped = [*compressed(self.spec.path, self.spec.suffixes)]
        if self.spec.validation_path:
            skipped += compressed(self.spec.validation_path, self.spec.suffixes)
        note = f"{count(len(skipped), 'compressed file')} skipped, such as {skipped[0]}: unpack" if skipped else ""
        return domains, {"compressed": note} if note else {}

    def _collect(self, path: str, seen: set[bytes]) -> dict[str, Split]:
        """The texts of each domain, up to ``megabytes``, without those in ``seen``."""
        limit = round(self.spec.megabytes * 1e6)
        splits: dict[str, Split] = {}
        for name, document in read(Path(path), self.spec.suffixes, limit, self.spec.encoding):
            if document.text.strip():
                splits.setdefault(name, Split(limit)).add(document, seen)
        found = {name: split for name, split in splits.items() if split.documents}
        if splits and not found:
            raise DataError(f"all text of {path} is also in {self.spec.validation_path}")
        if not found:
            raise DataError(f"no text in {path}: all of it is empty\n  expected UTF-8 text")
        return found


def _notes(split: Split) -> list[str]:
    notes = skipped_duplicates(split.duplicates)
    return [*notes, "more text than data.megabytes allows: the rest skipped"] if split.is_full else notes


def _split(documents: list[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: whole ones, or the end of the only one."""
    total = sum(len(document.text) for document in documents)
    if len(documents) == 1:
        (only,) = documents
        head = truncate(only.text, round(total * (1 - share)))
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
