"""Reads the translations that Django ships, without importing Django: GNU gettext catalogs beside its modules."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from moekit.errors import DataError
from moekit_data.translations.pairs import Pair

INSTALL = "pip install -e '.[translation]'"


def require(package: str, why: str) -> Path:
    """The folder, or the file, of an installed package.

    Raises:
        DataError: it is not installed; the message has the command.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"data translations needs {package} ({why}), which is not installed\n  {INSTALL}")
    origin = Path(spec.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def read_django() -> Iterator[Pair]:
    """Every translated entry of Django's core and contrib apps, catalog by catalog in order of path.

    Raises:
        DataError: Django or polib is not installed, or Django came without catalogs.
    """
    root = require("django", "its catalogs are the pairs")
    require("polib", "it reads catalogs")
    catalogs = sorted(root.glob("**/locale/*/LC_MESSAGES/*.po"))
    if not catalogs:
        raise DataError(
            f"no catalogs below {root}\n  expected locale/*/LC_MESSAGES/*.po, which some distributions leave out\n"
            f"  {INSTALL}"
        )
    for path in catalogs:
        language = path.parent.parent.name
        if language.partition("_")[0] != "en":  # en_AU and en_GB spell, and do not translate
            yield from read_catalog(path, language)


def read_catalog(path: Path, language: str) -> Iterator[Pair]:
    """The entries of one catalog, without what is obsolete, fuzzy, untranslated, or has plural forms.

    Raises:
        DataError: the file is damaged.
    """
    try:
        import polib  # only who asks for translations loads it
    except ImportError as error:  # it is there, as read_django saw, and does not load
        raise DataError(f"data translations cannot load polib: {error}\n  {INSTALL}") from error
    try:
        entries = list(polib.pofile(str(path), encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}\n  expected a gettext catalog (.po)") from error
    for entry in entries:
        if entry.msgid and entry.msgstr and not (entry.obsolete or entry.fuzzy or entry.msgid_plural):
            yield Pair(entry.msgid, entry.msgstr, language)
