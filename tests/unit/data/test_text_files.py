import json
import os

import pytest
import torch

from moekit.contracts import Data
from moekit.errors import DataError
from moekit.registry import build
from moekit.spec.fields import ConflictError
from moekit_data.text_files import TextFiles

SMALL = {"seq": 4, "batch": 3, "validation_windows": 5}


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(root)


def prepared(path, **options):
    data = build(TextFiles(path=str(path), **{**SMALL, **options}))
    data.prepare()
    return data


def splits(path, **options):
    """Per domain: the training texts and the validation texts."""
    found = build(TextFiles(path=str(path), **{**SMALL, **options})).tokenised()
    return {d.name: (documents(d.train), documents(d.validation)) for d in found.domains}


def documents(stream):
    """The texts of a stream of bytes: byte 0 ends each."""
    return bytes(stream[0 : len(stream)].tolist()).split(b"\0")[:-1]


def records(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_a_single_file_gives_its_end_to_validation(tmp_path):
    text = "".join(f"line {n:03}\n" for n in range(100))
    (tmp_path / "book.txt").write_text(text)
    ((train, validation),) = splits(tmp_path / "book.txt", validation=0.2).values()
    assert train[0] + validation[0] == text.encode()
    assert len(validation[0]) == round(0.2 * len(text))
    data = prepared(tmp_path / "book.txt")
    assert data.domain_names() == ("text",)
    assert data.describe()["text"] == "train 0.00 MB in 1 text, validation 0.00 MB in 1 text"


def test_subfolders_are_domains_and_files_are_split_whole(tmp_path):
    files = {f"{kind}/{sub}{n}.txt": f"{kind} {sub} {n} " * 5 for kind in "ab" for sub in ("", "x/") for n in range(5)}
    write(tmp_path, files | {"top.md": "top " * 9, "skipped.log": "no", ".hidden/x.txt": "no", "a/.x.txt": "no"})
    found = splits(tmp_path, validation=0.3)
    assert list(found) == ["a", "b", "text"]
    for kind in "ab":
        train, validation = found[kind]
        assert sorted(train + validation) == sorted(t.encode() for n, t in files.items() if n.startswith(kind))
        assert train and validation
    assert found == splits(tmp_path, validation=0.3)


def test_suffixes_choose_the_files(tmp_path):
    write(tmp_path, {"a.rst": "one two three", "b.RST": "four five six", "c.txt": "seven"})
    train, validation = splits(tmp_path, suffixes=[".rst"])["text"]
    assert sorted(train + validation) == [b"four five six", b"one two three"]


def test_json_lines_with_and_without_domains(tmp_path):
    path = records(
        tmp_path / "all.jsonl",
        *({"text": f"first {n} words", "domain": "first", "other": 1} for n in range(8)),
        *({"text": f"second {n} words", "domain": "second"} for n in range(8)),
        {"text": "none", "domain": None},
    )
    found = splits(path, validation=0.25)
    assert list(found) == ["first", "second", "text"]
    assert [len(t) + len(v) for t, v in found.values()][:2] == [8, 8]
    assert found["text"] == ([b"non"], [b"e"])


def test_json_lines_in_a_folder_take_its_domain(tmp_path):
    (tmp_path / "talk").mkdir()
    records(tmp_path / "talk" / "a.jsonl", {"text": "hello there"}, {"text": "bye now", "domain": "end"})
    assert list(splits(tmp_path)) == ["end", "talk"]


def test_a_validation_path_leaves_all_of_path_to_training_except_copies(tmp_path):
    write(tmp_path / "t", {"a.txt": "train one", "b.txt": "copied text", "c.txt": "train two"})
    write(tmp_path / "v", {"z.txt": "copied text"})
    (train, validation) = splits(tmp_path / "t", validation_path=str(tmp_path / "v"))["text"]
    assert (train, validation) == ([b"train one", b"train two"], [b"copied text"])
    data = prepared(tmp_path / "t", validation_path=str(tmp_path / "v"))
    assert data.describe()["text"].endswith("1 exact duplicate skipped")


def test_bytes_of_another_encoding_are_refused_with_file_and_offset(tmp_path):
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfcaf\xe9 au lait", "b.jsonl": b'{"text": "x"}\n{"text": "\xe9"}\n'})
    assert refused(tmp_path / "a.txt").startswith(f"not utf-8 text: {tmp_path / 'a.txt'}, line 1, byte 6 (0xe9): inval")
    assert refused(tmp_path / "b.jsonl").startswith(f"not utf-8 text: {tmp_path / 'b.jsonl'}, line 2, byte 24 (0xe9): ")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_of_another_encoding_is_read_if_it_is_named(tmp_path, encoding):
    write(tmp_path, {"a.txt": "café au lait".encode(encoding)})
    train, validation = splits(tmp_path / "a.txt", encoding=encoding)["text"]
    assert (train[0] + validation[0]).decode() == "café au lait"


def test_an_unknown_encoding_is_refused():
    for name in ("klingon", "hex"):
        with pytest.raises(ConflictError, match=f"encoding='{name}' is unknown"):
            TextFiles(path="x", encoding=name)


def test_blank_texts_and_empty_files_are_reported(tmp_path):
    write(tmp_path, {"a.txt": "some text here " * 9, "b.txt": "", "c.txt": " \n", "d.jsonl": '{"text": ""}\n' * 3})
    for _ in range(2):  # also from the cache
        found = prepared(tmp_path).describe()["skipped"]
        assert found == f"4 blank texts skipped; 3 files without text, such as {tmp_path / 'b.txt'}"


def test_a_book_of_one_file_gives_some_of_its_passages_to_validation(tmp_path):
    text = "".join(f"{n}: a line of a book that has a usual length\n" for n in range(22_000))
    (tmp_path / "book.txt").write_text(text)
    train, validation = splits(tmp_path / "book.txt")["text"]
    assert sum(map(len, train + validation)) == len(text)
    assert 0.02 < sum(map(len, validation)) / len(text) < 0.25
    assert all(each.endswith(b"\n") for each in (*train, *validation))


def test_a_fifo_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for path in (tmp_path, tmp_path / "a.txt"):
        assert refused(path).startswith(f"cannot read {tmp_path / 'a.txt'}: Not a regular file")


def test_domains_too_short_for_a_window_are_skipped_and_described(tmp_path):
    write(tmp_path, {"a/1.txt": "long enough text", "a/2.txt": "here as well", "b/1.txt": "xyz", "b/2.txt": "uvw"})
    data = prepared(tmp_path)
    assert data.domain_names() == ("a",)
    assert data.describe()["b"] == "skipped: 4 tokens of training text, a window needs 5"


def test_a_domain_without_validation_still_trains(tmp_path):
    write(tmp_path / "t", {"a/1.txt": "long enough text", "b/1.txt": "as long as that"})
    write(tmp_path / "v", {"a/2.txt": "something else"})
    data = prepared(tmp_path / "t", validation_path=str(tmp_path / "v"))
    assert data.describe()["b"].endswith("no validation: 0 tokens, a window needs 5")
    assert {d for b in data.validation_batches() for d in b.domain.tolist()} == {0}
    assert set(data.train_batch(torch.Generator().manual_seed(0))[4].tolist()) <= {0, 1}


def test_a_path_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, {"a.txt": "some text here"})
    assert splits("~/a.txt")["text"]


def refused(path, **options):
    """The message of the error."""
    with pytest.raises(DataError, match=r"\n  |also in") as caught:
        prepared(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "x.txt", "no such file or folder: {}\n  expected a text file, a .jsonl file, or a folder of them"),
        (
            {"a.log": "x"},
            "",
            "no text in folder {}\n  expected files that end with .txt, .md, .jsonl, .parquet, .arrow "
            "(option data.suffixes)",
        ),
        ({"a.txt": ""}, "a.txt", "no text in {}: all of it is empty\n  expected UTF-8 text"),
        ({"a.txt": " \n\n"}, "a.txt", "no text in {}: all of it is empty\n  expected UTF-8 text"),
        (
            {"b.txt": b"\x7fELF\0\0"},
            "b.txt",
            "not a text file: {}, line 1 (it contains the byte 0)\n  expected utf-8 text",
        ),
    ],
    ids=["missing", "folder without text", "empty", "blank", "binary"],
)
def test_a_path_without_text_is_named(tmp_path, files, path, message):
    write(tmp_path, files)
    assert refused(tmp_path / path) == message.format(tmp_path / path)


def test_the_error_for_a_relative_path_names_its_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("nowhere") == (
        f"no such file or folder: nowhere\n  looked in {tmp_path}, where the command runs\n"
        "  expected a text file, a .jsonl file, or a folder of them"
    )


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "some text"})
    path = tmp_path / "a.txt"
    if os.geteuid() == 0:  # root may read everything: make the system call fail

        def refuse(path, *args, **kwargs):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("moekit_data.text_files.files.open_regular", refuse)
    else:
        path.chmod(0)
    assert refused(path) == f"cannot read {path}: Permission denied\n  expected a readable text file"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"{not json}", "not JSON (Expecting property name enclosed in double quotes"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b'{"txt": "x"}', "no 'text' among its keys 'txt'"),
        (b'{"text": 3}', "'text' is a int"),
        (b'{"text": "x", "domain": 4}', "'domain' is 4"),
        (b'{"text": "x", "domain": ""}', "'domain' is ''"),
        (b'{"text": "a\\u0000b"}', "'text' contains the character U+0000"),
        (b"[" * 100_000, "not JSON ("),
    ],
)
def test_a_malformed_line_of_json_is_named(tmp_path, line, found):
    write(tmp_path, {"x.jsonl": b'{"text": "good"}\n\n' + line + b"\n"})
    message = refused(tmp_path / "x.jsonl")
    assert message.startswith(f"{tmp_path / 'x.jsonl'}, line 3: {found}")
    assert message.endswith(
        '\n  expected {"text": "...", "domain": "..."}, domain optional (options data.text_key, data.domain_key)'
    )


def test_a_json_line_beyond_the_limit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("moekit_data.text_files.reading.LONGEST_LINE", 100)
    write(tmp_path, {"x.jsonl": json.dumps({"text": "x" * 500})})
    assert "line 1: longer than 100 bytes" in refused(tmp_path / "x.jsonl")


def test_a_domain_that_only_validates_is_refused(tmp_path):
    write(tmp_path / "t", {"a/1.txt": "training text"})
    write(tmp_path / "v", {"b/1.txt": "validation text"})
    message = refused(tmp_path / "t", validation_path=str(tmp_path / "v"))
    assert message == (
        f"{tmp_path / 'v'} has text of b, but {tmp_path / 't'} has none\n"
        "  expected its domains: a (subfolders, or 'domain' of a record)"
    )


def test_training_on_the_validation_text_is_refused(tmp_path):
    write(tmp_path, {"a.txt": "the same text"})
    message = refused(tmp_path / "a.txt", validation_path=str(tmp_path / "a.txt"))
    assert message == f"all text of {tmp_path / 'a.txt'} is also in {tmp_path / 'a.txt'}"


def test_too_little_text_for_one_window_is_refused(tmp_path):
    write(tmp_path, {"a.txt": "abcdefgh"})
    message = refused(tmp_path / "a.txt", seq=64)
    assert message == (
        "too little text for one window of 65 tokens to train on\n"
        "  text: skipped: 8 tokens of training text, a window needs 65\n"
        "  give more text, or a smaller data.seq"
    )
    assert refused(tmp_path / "a.txt").startswith(
        "too little text for one window of 5 tokens to validate with\n  text: "
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": " "}, "path is empty"),
        ({"path": "x", "validation_path": ""}, "validation_path is empty"),
        ({"path": "x", "suffixes": ["txt"]}, "must be file endings such as .txt"),
        ({"path": "x", "suffixes": []}, "must be file endings such as .txt"),
    ],
)
def test_the_text_files_spec_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TextFiles(**options)


def test_a_record_with_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok \\ud83d\\ude00"}\n{"text": "bad \\ud83d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: 'text' contains half a surrogate pair at 4"):
        prepared(path)


def test_the_fingerprint_changes_with_any_text_and_with_no_window(tmp_path):
    files = {f"{n}.txt": f"text number {n} " * 9 for n in range(6)}
    same = prepared(write(tmp_path / "a", files)).fingerprint()
    assert prepared(write(tmp_path / "b", files), seq=3, batch=2).fingerprint() == same
    for name, text in files.items():  # of training as of validation
        assert prepared(write(tmp_path / name, files | {name: text[:-1] + "."})).fingerprint() != same
    assert prepared(write(tmp_path / "c", {f"d/{name}": text for name, text in files.items()})).fingerprint() != same


def test_the_default_fingerprint_is_that_of_batches(tmp_path):
    files = {f"{n}.txt": f"text number {n} " * 9 for n in range(6)}
    path = write(tmp_path / "a", files)
    found = [
        Data.fingerprint(prepared(where, **options))
        for where, options in (
            *((path, options) for options in ({}, {}, {"seq": 3}, {"batch": 2})),
            (write(tmp_path / "b", files | {"0.txt": "another text " * 9}), {}),
        )
    ]
    assert found[0] == found[1] and len(set(found)) == 4
