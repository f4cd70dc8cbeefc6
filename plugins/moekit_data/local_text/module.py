"""Text by domain from Python's and torch's own files."""

from __future__ import annotations

from moekit.errors import DataError
from moekit_data.corpus import Domain, Filler
from moekit_data.local_text import LocalText
from moekit_data.local_text.sources import SOURCES
from moekit_data.text import TextData, Tokenised, tokenise


class LocalTextData(TextData):
    """Equal bytes of each domain, split by file, without exact duplicates; the same on every call.

    A hash of its name determines whether a file validates. Files are read in the order of another hash, so that a
    small size is a fair sample. Which files exist depends on the installed versions of Python, torch and other
    packages.
    """

    def __init__(self, spec: LocalText) -> None:
        super().__init__(spec)
        self.spec: LocalText = spec

    def tokenised(self) -> Tokenised:
        """All of it, in memory.

        Raises:
            DataError: as ``read``.
        """
        return tokenise(*self.read(), self.tokenizer)

    def read(self) -> tuple[list[Domain], dict[str, str]]:
        """The domains that this machine has, and notes about those it lacks.

        Raises:
            DataError: none of the domains has a file here.
        """
        filler = Filler(round(self.spec.megabytes * 1e6), self.spec.validation)
        domains = [filler.fill(name, SOURCES[name]()) for name in self.spec.domains]
        found = [d for d in domains if d.train and d.validation]
        notes = {d.name: "skipped: no files of this kind on this machine" for d in domains if d not in found}
        if not found:
            raise DataError(
                f"this machine has no text for any of the domains {', '.join(self.spec.domains)}\n"
                "  looked in Python's library, torch's package folder and the installed packages' metadata\n"
                "  use your own text instead: data: {use: text_files, path: FOLDER}"
            )
        return found, notes
