"""Reading pairs: gettext catalogs, JSON lines, tab-separated files, and the errors for malformed ones."""

import json
import sys
from collections import Counter

import pytest

from moekit.errors import DataError
from moekit.extras import MissingPackage
from moekit_data.translations.pairs import Pair, keep, placeholders
from moekit_data.translations.reading import read_catalog, read_django, read_files

CATALOG = """\
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"

msgid "Save"
msgstr "Sichern"

#, python-format
msgid "Hello %(name)s,"
" again"
msgstr "Hallo %(name)s"

#, fuzzy
msgid "Guess"
msgstr "Geraten"

msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d Tag"
msgstr[1] "%d Tage"

msgid "Untranslated"
msgstr ""

#~ msgid "Old"
#~ msgstr "Alt"
"""


def django_at(root, monkeypatch, **languages):
    """A package that looks like Django: an app in its core, one in contrib."""
    package = root / "django"
    package.mkdir()
    (package / "__init__.py").touch()
    for app in ("conf", "contrib/admin"):
        for name, text in languages.items():
            folder = package / app / "locale" / name / "LC_MESSAGES"
            folder.mkdir(parents=True)
            (folder / "django.po").write_text(text.replace("APP", app), encoding="utf-8")
    monkeypatch.delitem(sys.modules, "django", raising=False)
    monkeypatch.syspath_prepend(str(root))


def test_only_translated_entries_of_a_catalog_are_read(tmp_path):
    path = tmp_path / "django.po"
    path.write_text(CATALOG, encoding="utf-8")
    assert list(read_catalog(path, "de")) == [
        Pair("Save", "Sichern", "de"),
        Pair("Hello %(name)s, again", "Hallo %(name)s", "de"),
    ]


def test_a_damaged_catalog_is_named(tmp_path):
    path = tmp_path / "django.po"
    path.write_text('msgid "a"\nmsgstr "b"\nnonsense\n')
    with pytest.raises(DataError, match=r"cannot read .*django\.po(.|\n)*expected a gettext catalog"):
        list(read_catalog(path, "de"))


def test_every_app_is_read_and_english_is_skipped(tmp_path, monkeypatch):
    text = 'msgid "Colour of APP"\nmsgstr "Farbe"\n'
    django_at(tmp_path, monkeypatch, de=text, en=text, en_GB=text, pt_BR=text)
    assert list(read_django()) == [
        Pair(f"Colour of {app}", "Farbe", name) for app in ("conf", "contrib/admin") for name in ("de", "pt_BR")
    ]


def test_only_catalogs_of_named_languages_are_read_and_all_if_one_has_none(tmp_path, monkeypatch):
    """All, so that an error can list the languages."""
    text = 'msgid "Colour of APP"\nmsgstr "Farbe"\n'
    django_at(tmp_path, monkeypatch, de=text, en=text, fr="damaged", pt_BR=text)
    assert [pair.language for pair in read_django(["pt_BR", "de"])] == ["de", "pt_BR"] * 2
    for unknown in (["de", "deu"], ["de", "fr"], []):
        with pytest.raises(DataError, match=r"cannot read .*fr"):
            list(read_django(unknown))


@pytest.mark.parametrize("missing", ["django", "polib"])
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, missing):
    django_at(tmp_path, monkeypatch, de=CATALOG)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingPackage, match=rf"needs {missing}, .*\n  pip install 'moekit\[translation\]'$"):
        list(read_django())


def test_a_package_that_does_not_load_is_named_with_the_command(tmp_path, monkeypatch):
    django_at(tmp_path, monkeypatch, de=CATALOG)
    (tmp_path / "polib.py").write_text("raise ImportError('broken')")
    monkeypatch.delitem(sys.modules, "polib", raising=False)
    with pytest.raises(DataError, match=r"cannot load polib: broken\n  pip install 'moekit\[translation\]'"):
        list(read_django())


def test_a_django_without_catalogs_is_refused(tmp_path, monkeypatch):
    django_at(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"no catalogs below(.|\n)*pip install"):
        list(read_django())


def test_the_installed_django_has_many_languages():
    pairs = list(read_django())
    size = Counter(pair.language for pair in pairs)
    assert len(size) >= 90 and len(pairs) >= 60_000
    assert not any(name.startswith("en") for name in size)
    assert len({pair.source for pair in pairs}) >= 700
    assert size["de"] >= 700 and size["ja"] >= 700
    kept = [placeholders(pair.source) == placeholders(pair.target) for pair in pairs if placeholders(pair.source)]
    assert len(kept) >= 8_000 and sum(kept) / len(kept) > 0.99  # otherwise the pattern is not what translators keep


PAIRS = [Pair("Save", "Sichern", "de"), Pair("Save", "保存", "zh_Hans"), Pair('a "b"', "ä \\n", "de")]


def write_json(path, rows=PAIRS):
    path.write_text("\n\n".join(json.dumps(row._asdict()) for row in rows) + "\n", encoding="utf-8")
    return path


def test_json_lines_and_tabs_give_the_same_pairs(tmp_path):
    jsonl = write_json(tmp_path / "pairs.jsonl")
    plain, named = tmp_path / "plain.tsv", tmp_path / "named.TSV"
    plain.write_text("\n".join("\t".join(row) for row in PAIRS), encoding="utf-8")
    rows = [("language", "source", "target"), *((row.language, row.source, row.target) for row in PAIRS)]
    named.write_bytes("\r\n".join("\t".join(row) for row in rows).encode("utf-8-sig"))
    assert list(read_files(jsonl)) == list(read_files(plain)) == list(read_files(named)) == PAIRS


def test_a_folder_is_read_in_order_of_name(tmp_path):
    (tmp_path / "deep").mkdir()
    write_json(tmp_path / "b.jsonl", PAIRS[:1])
    write_json(tmp_path / "deep" / "c.jsonl", PAIRS[1:2])
    (tmp_path / "a.tsv").write_text("x\ty\tfr\n")
    (tmp_path / "notes.txt").write_text("not read")
    assert list(read_files(tmp_path)) == [Pair("x", "y", "fr"), *PAIRS[:2]]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.jsonl", '{"source": "x"', "line 1: not JSON"),
        ("a.jsonl", "\n[1]", "line 2: a JSON list, not an object"),
        ("a.jsonl", '{"source": "x", "target": "y"}', "line 1: no 'language'"),
        ("a.jsonl", '{"source": "x", "target": 3, "language": "de"}', "'target' is 3"),
        ("a.jsonl", '{"source": "x", "target": "y\\u0000", "language": "de"}', "contains the character U\\+0000"),
        ("a.jsonl", '{"source": "x", "target": "y", "language": "<de>"}', "'language' is '<de>'"),
        ("a.tsv", "x\ty\tde\nx\ty", "line 2: 2 columns"),
        ("a.tsv", "x y", "line 1: 1 column\n"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=found) as caught:
        list(read_files(tmp_path / name))
    assert name in str(caught.value) and "\n  expected " in str(caught.value)


def test_a_path_without_pairs_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no pairs at nowhere\.tsv\n  looked in"):
        list(read_files(tmp_path.__class__("nowhere.tsv")))
    with pytest.raises(DataError, match=r"expected a \.jsonl or \.tsv file"):
        list(read_files(tmp_path))


def test_the_first_of_a_source_and_language_is_kept_if_it_is_short():
    pairs = [
        Pair(" Save ", "Sichern\n", "de"),
        Pair("Save", "Speichern", "de"),
        Pair("Save", "Sauver", "fr"),
        Pair("Save", " ", "el"),
        Pair("long" * 5, "lang", "de"),
    ]
    kept, notes = keep(pairs, max_chars=10)
    assert kept == [Pair("Save", "Sichern", "de"), Pair("Save", "Sauver", "fr")]
    assert notes == ["1 pair longer than data.max_chars=10", "1 of a source that was there already"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%(name)s of %(count)d, %(name)s", {"%(name)s": 2, "%(count)d": 1}),
        ("%s and %d%%, {name} {0} {}", {"%s": 1, "%d": 1, "{name}": 1, "{0}": 1, "{}": 1}),
        ("100% sure, {not one}, 5 %", {}),
    ],
)
def test_placeholders_are_found_in_text(text, found):
    assert placeholders(text) == found


def test_bytes_that_are_not_utf_8_are_refused_with_line_and_offset(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"Save\tSichern\tde\nClose\tSchlie\xdfen\tde\n")
    with pytest.raises(DataError, match=r"not utf-8 text: .*a.tsv, line 2, byte 28 \(0xdf\): invalid"):
        list(read_files(path))
