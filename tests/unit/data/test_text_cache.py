"""Text is tokenised once, into files that are complete or absent, and equal however many processes write them."""

import os
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch

from moekit.errors import DataError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.bpe.module import BytePairTokenizer
from moekit_data.mapped import READS, MappedTokens
from moekit_data.text_files import TextFiles, files, jobs, module, reading, store
from moekit_data.text_files.progress import Bar
from moekit_hf.tokenizer import TokenizerFile


@pytest.fixture
def small(monkeypatch):
    """Passages of 64 bytes and segments of 256; more than one process from 100 bytes on."""
    for each in (files, reading):
        monkeypatch.setattr(each, "PASSAGE", 64)
    monkeypatch.setattr(files, "SEGMENT", 256)
    monkeypatch.setattr(reading, "WINDOW", 32)
    monkeypatch.setattr(module, "SMALL", 100)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "long.txt").write_text("".join(f"{n}: a line of a long file\n" for n in range(200)))
    (folder / "records.jsonl").write_text("".join(f'{{"text": "record {n}", "domain": "r"}}\n' for n in range(40)))
    return folder


def make(path, tmp_path, **options):
    return build(TextFiles(path=str(path), cache=str(tmp_path / "cache"), **{"seq": 4, "batch": 3, **options}))


def streams(data):
    """The tokens of every domain and split."""
    return {
        (d.name, split): getattr(d, split)[0 : len(getattr(d, split))].tolist()
        for d in data.tokenised().domains
        for split in ("train", "validation")
    }


def test_several_processes_write_the_tokens_that_one_writes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 100)
    (corpus / "more.txt").write_text("another file of text\n" * 30)
    (corpus / "more.md").write_text("and one more, so that there is work\n" * 30)
    one, two = (make(corpus, tmp_path / str(n), processes=n, tokenizer=BytePairs(vocab=270)) for n in (1, 2))
    assert streams(two) == streams(one)
    assert two.state() == one.state()


def test_a_long_file_is_joined_from_its_passages_and_ends_where_the_split_changes(small, corpus, tmp_path):
    found = streams(make(corpus, tmp_path, processes=1, validation=0.3))
    texts = {split: bytes(found["text", split]).split(b"\0")[:-1] for split in ("train", "validation")}
    whole = (corpus / "long.txt").read_bytes()
    pieces = sorted((whole.index(text), text) for some in texts.values() for text in some)
    assert b"".join(text for _, text in pieces) == whole
    assert all(len(some) > 3 for some in texts.values())
    assert len(pieces) < sum(
        1 for _ in reading.read(files.Segment(corpus / "long.txt", "d", "text", 0, None, 0), reading.Reading())
    )
    share = sum(map(len, texts["validation"])) / len(whole)
    assert 0.1 < share < 0.5


def test_text_is_tokenised_once(corpus, tmp_path, monkeypatch):
    first = streams(make(corpus, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(module, "ListTexts", lambda *args: pytest.fail("read again"))
        assert streams(make(corpus, tmp_path)) == first
    os.utime(corpus / "long.txt", (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(module, "TokeniseTexts", lambda *args: pytest.fail("tokenised again"))
        assert streams(make(corpus, tmp_path)) == first  # read, because of its time, and found equal
    with (corpus / "long.txt").open("a") as file:
        file.write("one more line\n")
    assert streams(make(corpus, tmp_path)) != first


def test_copies_of_a_text_tokenised_at_the_same_time_do_not_disturb_each_other(corpus, tmp_path, monkeypatch):
    """Each once deleted the other's files, which it took for those of a process that was killed."""
    copied = shutil.copytree(corpus, tmp_path / "copied")
    first, second = make(corpus, tmp_path), make(copied, tmp_path)
    add, found = store.Writer.add, []
    other = threading.Thread(target=lambda: found.append(streams(second)))

    def add_while_the_other_begins(self, *args):
        if other.ident is None:
            other.start()
            other.join(0.5)
        add(self, *args)

    monkeypatch.setattr(store.Writer, "add", add_while_the_other_begins)
    expected = streams(first)
    other.join()
    assert found == [expected]


def test_tokens_are_learnt_once(corpus, tmp_path, monkeypatch):
    """And again if the file that a tokenizer's options name has changed."""
    first = make(corpus, tmp_path, tokenizer=BytePairs(vocab=270))
    found = streams(first)
    with monkeypatch.context() as patch:
        patch.setattr(BytePairTokenizer, "train", lambda self, texts: pytest.fail("learnt again"))
        again = make(corpus, tmp_path, tokenizer=BytePairs(vocab=270))
        assert streams(again) == found and again.state() == first.state()

    options, file = TokenizerFile(vocab=300, file=str(tmp_path / "t.json")), tmp_path / "t.json"
    file.write_text(first.state()["bpe"])
    with_end = streams(make(corpus, tmp_path, tokenizer=options))
    file.write_text(make_other(corpus, tmp_path))
    assert streams(make(corpus, tmp_path, tokenizer=options)) != with_end


def make_other(corpus, tmp_path):
    """Fewer byte pairs, as text."""
    data = make(corpus, tmp_path, tokenizer=BytePairs(vocab=260))
    data.prepare()
    return data.state()["bpe"]


def test_the_progress_bar_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    for forced, shown, expected in (("1", True, True), ("1", False, False), ("", True, False)):
        monkeypatch.setenv("FORCE_COLOR", forced)
        with Bar("reading corpus", 100, shown=shown) as bar:
            bar.add(50)
        assert ("reading corpus" in capsys.readouterr().err) is expected


def test_other_tokens_and_another_split_have_their_own_cache(corpus, tmp_path):
    plain = streams(make(corpus, tmp_path))
    pairs = streams(make(corpus, tmp_path, tokenizer=BytePairs(vocab=260)))
    other = streams(make(corpus, tmp_path, validation=0.5))
    assert plain != pairs and plain != other
    assert streams(make(corpus, tmp_path)) == plain
    assert streams(make(corpus, tmp_path, tokenizer=BytePairs(vocab=260))) == pairs


def test_a_damaged_cache_is_made_again(corpus, tmp_path):
    first = streams(make(corpus, tmp_path))
    for path in (tmp_path / "cache").rglob("*.train"):
        path.write_bytes(path.read_bytes()[:-3])
    assert streams(make(corpus, tmp_path)) == first
    for path in (tmp_path / "cache").rglob("corpus.json"):
        path.write_text("{")
    assert streams(make(corpus, tmp_path)) == first


def test_a_failure_leaves_no_part_of_a_corpus(corpus, tmp_path, monkeypatch):
    def full(self, part, runs):
        raise OSError(28, "No space left on device", str(part))

    with monkeypatch.context() as patch:
        patch.setattr("moekit_data.text_files.store.Writer.add", full)
        with pytest.raises(
            DataError, match=r"cannot write tokenised text to .*: No space left(.|\n)*option data.cache"
        ):
            make(corpus, tmp_path).tokenised()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}
    make(corpus, tmp_path).prepare()


def test_what_a_killed_process_left_is_deleted(corpus, tmp_path):
    first = make(corpus, tmp_path)
    first.prepare()
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    left = folder.rename(folder.with_name(f"{folder.name}.12345.tmp"))
    assert streams(make(corpus, tmp_path)) and not left.exists()


def test_a_cache_that_cannot_be_made_is_named(corpus, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write tokenised text to .*cache.*(.|\n)*option data.cache"):
        make(corpus, tmp_path).prepare()


def test_the_cache_is_where_the_variable_says(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEKIT_CACHE", str(tmp_path / "elsewhere"))
    build(TextFiles(path=str(corpus), seq=4)).prepare()
    assert list((tmp_path / "elsewhere").iterdir())


def test_a_fault_in_another_process_is_reported_as_in_this_one(small, corpus, tmp_path):
    (corpus / "z.jsonl").write_text('{"text": "fine"}\n{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"z\.jsonl, line 2: no 'text' among its keys 'txt'"):
        make(corpus, tmp_path, processes=2).prepare()


def test_a_process_that_ends_is_reported(small, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("moekit_data.text_files.workers.sys.executable", "/bin/false")
    with pytest.raises(DataError, match=r"a process that tokenises text ended with code 1(.|\n)*data.processes=1"):
        make(corpus, tmp_path, processes=2).prepare()


def test_a_file_that_grows_while_it_is_read_is_refused(corpus, tmp_path, monkeypatch):
    def list_and_append(self, tokenizer):
        found = list_texts(self, tokenizer)
        with (corpus / "records.jsonl").open("a") as file:
            file.write('{"text": "late"}\n')
        return found

    list_texts = jobs.ListTexts.run
    monkeypatch.setattr(jobs.ListTexts, "run", list_and_append)
    with pytest.raises(DataError, match=r"records\.jsonl has changed while it was read"):
        make(corpus, tmp_path).prepare()


def test_texts_stay_in_their_split_when_files_are_added_or_renamed(tmp_path):
    (tmp_path / "c").mkdir()

    def validating():
        found = make(tmp_path / "c", tmp_path, validation=0.3).tokenised().domains[0]
        return set(bytes(found.validation[0 : len(found.validation)].tolist()).split(b"\0")[:-1])

    names = [f"{n}.txt" for n in range(40)]
    for name in names[:20]:
        (tmp_path / "c" / name).write_text(f"text of {name}")
    before = validating()
    assert 2 < len(before) < 12
    for name in names[20:]:
        (tmp_path / "c" / name).write_text(f"text of {name}")
    (tmp_path / "c" / "0.txt").rename(tmp_path / "c" / "renamed.txt")
    after = validating()
    assert {text for text in after if int(text[8:-4]) < 20} == before
    assert len(after) > len(before)


def test_tokens_learn_from_all_parts_of_a_long_text_up_to_a_limit(small, corpus, tmp_path):
    data = make(corpus, tmp_path, processes=1, learn_megabytes=0.001, tokenizer=BytePairs(vocab=300))
    learnt = []
    data.tokenizer.train = lambda texts: learnt.extend(texts)
    plan = data._plan([], data._segments(str(corpus)), module.Workers(1))
    data.tokenizer.train(data._to_learn_from(plan))
    whole = (corpus / "long.txt").read_bytes()
    places = [whole.index(text) for text in learnt if text in whole]
    assert 700 < sum(map(len, learnt)) < 1300
    assert places[0] < 1000 and places[-1] > 3000


def test_mapped_tokens_are_those_of_the_file_after_any_number_of_reads(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 60_000, 30_000).astype("<u2")
    tokens.tofile(tmp_path / "t")
    mapped = MappedTokens(tmp_path / "t", "<u2")
    assert len(mapped) == 30_000
    generator = np.random.default_rng(1)
    for _ in range(9 * READS + 5):
        start = int(generator.integers(29_000))
        assert mapped[start : start + 9].tolist() == tokens[start : start + 9].tolist()
    assert mapped[29_990:30_010].dtype == torch.int64 and len(mapped[29_990:30_010]) == 10
    assert pickle.loads(pickle.dumps(mapped))[5:9].tolist() == tokens[5:9].tolist()
