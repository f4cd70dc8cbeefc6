"""Texts are the same however a file is divided, compressed or encoded; a fault is reported with file and line."""

import bz2
import codecs
import gzip
import json
import lzma
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import DataError
from moekit_data.text_files import files, reading
from moekit_data.text_files.faults import Reading
from moekit_data.text_files.reading import read

examples = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Passages of 32 bytes and segments of 64, so that a short text has many."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, reading):
            patch.setattr(module, "PASSAGE", 32)
        patch.setattr(files, "SEGMENT", 64)
        patch.setattr(reading, "WINDOW", 16)
        yield


def texts(path, how=None, whole=False):
    """All texts of a file: read by segments, or as one."""
    how = how or Reading()
    parts = files.segments(path, "d", codecs.lookup(how.encoding).name)
    if whole:
        parts = [files.Segment(path, "d", parts[0].form, 0, None, 0)]
    return [text for part in parts for _, text in read(part, how)]


lines = st.lists(st.text("aé€𝄞 \n", max_size=90), max_size=9).map("\n".join)


@examples
@given(lines)
def test_a_text_file_read_by_segments_has_the_passages_of_the_whole(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes(text.encode())
    found = texts(path)
    assert found == texts(path, whole=True)
    assert b"".join(found) == text.encode()
    assert all(each.decode() or True for each in found)  # no passage begins or ends within a character
    zipped = path.with_name("b.txt.gz")
    zipped.write_bytes(gzip.compress(text.encode()))
    assert texts(zipped) == found
    for each in found[:-1]:
        assert 32 - 16 - 4 < len(each) <= 32 + 16 + 4


@examples
@given(st.lists(st.text("aé€ \n", max_size=90), max_size=12))
def test_json_lines_read_by_segments_are_those_of_the_whole(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("t") / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": word}, ensure_ascii=False) + "\n" * (1 + len(word) % 2) for word in words)
    )
    assert texts(path) == [word.encode() for word in words] == texts(path, whole=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "gbk"])
def test_the_encoding_of_a_file_does_not_change_its_texts(tmp_path, encoding):
    text = "".join(f"line {n}: to be or not to be\n" for n in range(40))
    plain, other = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_bytes(text.encode())
    other.write_bytes(text.encode(encoding))
    assert texts(other, Reading(encoding)) == texts(plain)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_are_read(tmp_path, suffix, pack):
    raw = b"".join(b'{"text": "number %d"}\n' % n for n in range(50))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(raw))
    assert texts(path) == [b"number %d" % n for n in range(50)]
    path.write_bytes(pack(raw)[:-20])
    with pytest.raises(DataError, match=rf"(damaged: |cannot read ).*a\.jsonl\{suffix}"):
        texts(path)


def test_zstandard_is_read_or_its_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.zst"
    try:
        from compression import zstd as library
    except ImportError:
        path.write_bytes(b"")
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, "zstandard", None)
            with pytest.raises(
                DataError, match=r"a\.txt\.zst is compressed by Zstandard(.|\n)*pip install 'moekit\[data"
            ):
                texts(path)
        library = pytest.importorskip("zstandard")
    text = "".join(f"line {n}\n" for n in range(90)).encode()
    path.write_bytes(library.compress(text[:300]) + library.compress(text[300:]))  # two frames, as pzstd writes
    assert b"".join(texts(path)) == text


@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.zst"])
def test_a_truncated_zstandard_file_is_damaged_wherever_it_ends(tmp_path, name):
    try:
        from compression import zstd as library
    except ImportError:
        library = pytest.importorskip("zstandard")
    path = tmp_path / name
    lines = b"".join(b'{"text": "%s"}\n' % os.urandom(500).hex().encode() for _ in range(500))  # several blocks
    first, second = library.compress(lines), library.compress(lines)
    path.write_bytes(first + second)
    assert sum(map(len, texts(path))) == 2 * (len(lines) if ".txt" in name else 500 * 1000)
    for size in (2, len(first) // 2, len(first) - 1, len(first) + 2, len(first + second) - 1):
        path.write_bytes((first + second)[:size])
        with pytest.raises(DataError, match=rf"damaged: .*{name}: (.|\n)*expected a complete \.zst file"):
            texts(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_fault_is_reported_with_its_line(tmp_path, packed):
    def wrong(name, raw, how=None):
        path = tmp_path / (name + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(raw) if packed else raw)
        with pytest.raises(DataError, match=r"expected") as caught:
            texts(path, how)
        return str(caught.value).replace(".gz", "")

    good = b"a line of some length\n" * 20
    place = f"{tmp_path / 'a.txt'}, line 21"
    assert wrong("a.txt", good + b"caf\xe9\n").startswith(f"not utf-8 text: {place}, byte 443 (0xe9): invalid contin")
    assert wrong("a.txt", good + b"a\0b").startswith(f"not a text file: {place} (it contains the byte 0)")
    wide = good.decode().encode("utf-16-le")
    assert wrong("a.txt", wide + b"\x00\xd8a\0", Reading("utf-16-le")).startswith(
        f"not utf-16-le text: {place}, byte 880"
    )
    assert wrong("a.txt", wide + b"\0\0", Reading("utf-16-le")).startswith(f"not a text file: {place} (it contains")
    records = b'{"text": "fine"}\n' * 20
    place = f"{tmp_path / 'a.jsonl'}, line 21"
    assert wrong("a.jsonl", records + b'{"txt": "x", "id": 3}\n').startswith(
        f"{place}: no 'text' among its keys 'txt', 'id'"
    )
    assert wrong("a.jsonl", records + b'{"text": "\xe9"}\n').startswith(f"not utf-8 text: {place}, byte 350 (0xe9)")
    assert wrong("a.jsonl", records + b'{"text": "half').startswith(f"{place}: not JSON (Unterminated string")


def test_other_keys_hold_text_and_domain(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one", "kind": "x"}\n{"body": "two"}\n')
    how = Reading(text_key="body", domain_key="kind")
    (part,) = files.segments(path, "d", "utf-8")
    assert list(read(part, how)) == [("x", b"one"), ("d", b"two")]


def tables(tmp_path):
    """The same rows as Parquet, as an Arrow file and as an Arrow stream."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table(
        {"id": range(3000), "text": [f"text {n}" for n in range(3000)], "domain": ["a", None, "b"] * 1000}
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    for name, new in (("file", arrow.ipc.new_file), ("stream", arrow.ipc.new_stream)):
        with new(tmp_path / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    return [tmp_path / "a.parquet", tmp_path / "file.arrow", tmp_path / "stream.arrow"]


def test_parquet_and_arrow_are_read(tmp_path):
    for path in tables(tmp_path):
        (part,) = files.segments(path, "d", "utf-8")
        assert list(read(part, Reading())) == [("adb"[n % 3], f"text {n}".encode()) for n in range(3000)]
        with pytest.raises(DataError, match=rf"{path.name} has no column 'body'\n  its columns are id, text, domain"):
            list(read(part, Reading(text_key="body")))
        with pytest.raises(DataError, match=rf"{path.name}, row 1: 'id' is a int"):
            list(read(part, Reading(text_key="id")))
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(DataError, match=rf"(damaged|cannot read).*{path.name}"):
            list(read(part, Reading()))


def test_without_pyarrow_a_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet needs the package pyarrow(.|\n)*pip install 'moekit\[datasets\]'"):
        texts(tmp_path / "a.parquet")
