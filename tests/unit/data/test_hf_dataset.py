"""A stream of documents gives each micro-batch its own, and is resumed exactly; all data is local."""

import json
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch

from moekit.errors import DataError
from moekit.registry import build
from moekit.spec.recipe import BatchRamp
from moekit.training.data import StepLoader
from moekit_data.bpe import BytePairs
from moekit_data.corpus import hash_of
from moekit_data.hf_dataset import HfDataset

library = pytest.importorskip("datasets")
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No hub, and the library's cache in a folder of the test."""
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    library.disable_progress_bars()


DOCUMENTS = [f"document {n}: " + "words and more words " * (1 + n % 4) for n in range(60)]


def write(folder, form="json", files=4):
    folder.mkdir()
    for i in range(files):
        rows = {"text": DOCUMENTS[i::files], "id": list(range(len(DOCUMENTS[i::files])))}
        if form == "json":
            lines = (json.dumps({"text": text}) for text in rows["text"])
            (folder / f"{i}.jsonl").write_text("\n".join(lines))
        elif form == "parquet":
            parquet.write_table(arrow.table(rows), folder / f"{i}.parquet", row_group_size=4)
        else:
            table = arrow.table(rows)
            with arrow.ipc.new_stream(folder / f"{i}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=4)
    return folder


def make(tmp_path, folder, form="json", **options):
    small = {"seq": 16, "batch": 2, "shuffle_windows": 4, "validation_windows": 3, "cache": str(tmp_path / "cache")}
    suffix = {"json": "jsonl"}.get(form, form)
    data = build(HfDataset(path=form, data_files=[f"{folder}/*.{suffix}"], **{**small, **options}))
    data.prepare()
    return data


def take(data, count, start=None, **options):
    loader = StepLoader(data, seed=0, **options)
    if start is not None:
        loader.load_state_dict(start)
    batches = iter(loader)
    return [next(batches).inputs for _ in range(count)]


def naive(lanes, lane, steps, *, files=4, seq=16, batch=2, block=4, share=0.1):
    """Windows of a lane in order of blocks, shuffled in each: from the documents, one token at a time."""
    mine = []
    for i in range(files):
        if files % lanes == 0 and i % lanes == lane:
            mine += DOCUMENTS[i::files]
    if files % lanes:
        every = [text for i in range(files) for text in DOCUMENTS[i::files]]
        mine = every[lane::lanes]
    tokens = []
    while len(tokens) < steps * batch * seq + block * seq + 1:
        for text in mine:
            if hash_of(text.encode()) >= share:
                tokens += [*text.encode(), 0]
    return [set_of(tokens, n, seq, block) for n in range(steps * batch // block)]


def set_of(tokens, number, seq, block):
    first = number * block
    return sorted(tokens[seq * w : seq * w + seq] for w in range(first, first + block))


@pytest.mark.parametrize("form", ["json", "parquet", "arrow"])
@pytest.mark.parametrize("streaming", [True, False])
def test_blocks_hold_each_window_of_the_stream_once_in_order(tmp_path, form, streaming):
    data = make(tmp_path, write(tmp_path / "d", form), form, streaming=streaming)
    found = take(data, 40)
    blocks = [sorted(torch.cat(found[i : i + 2]).tolist()) for i in range(0, 40, 2)]
    assert blocks == naive(1, 0, 40)


def test_a_growing_batch_leaves_no_window_out_and_resumes(tmp_path):
    """A batch may then end in the next block."""
    ramp = BatchRamp(first=0.25, steps=8)
    options = {"batch": 4, "shuffle_windows": 8}
    grown = take(make(tmp_path, write(tmp_path / "d"), **options), 20, ramp=ramp)
    assert [len(rows) for rows in grown] == [1, 1, 2, 2, 2, 3, 3, 4, *[4] * 12]
    whole = torch.cat(take(make(tmp_path, tmp_path / "d", **options), 18))
    assert torch.equal(torch.cat(grown), whole[: sum(map(len, grown))])
    for step in (1, 5, 8, 13):
        data = make(tmp_path, tmp_path / "d", **options)
        again = take(data, 20 - step, {"step": step, "micro": 0}, ramp=ramp)
        assert all(torch.equal(a, b) for a, b in zip(again, grown[step:], strict=True))


@pytest.mark.parametrize("lanes", [2, 3])
def test_each_micro_batch_reads_its_own_documents_on_any_number_of_ranks(tmp_path, lanes):
    """Two lanes share four files; three lanes read all and take every third document."""
    data = make(tmp_path, write(tmp_path / "d"))
    alone = take(data, 20 * lanes, accumulate=lanes)
    for lane in range(lanes):
        mine = alone[lane::lanes]
        assert [sorted(torch.cat(mine[i : i + 2]).tolist()) for i in range(0, 20, 2)] == naive(lanes, lane, 20)
        of_rank = take(make(tmp_path, tmp_path / "d"), 20, rank=lane, world=lanes)
        assert all(torch.equal(a, b) for a, b in zip(of_rank, mine, strict=True))


@pytest.mark.parametrize("form", ["json", "parquet", "arrow"])
def test_a_run_is_resumed_inside_the_stream(tmp_path, form, monkeypatch):
    """Within a block, within a document, and after the stream has started again; with bookmarks and without."""
    write(tmp_path / "d", form)
    whole = take(make(tmp_path, tmp_path / "d", form), 90, accumulate=3)
    for steps, folder in ((1, "cache"), (7, "cache"), (8, "none"), (23, "cache"), (23, "none")):
        data = make(tmp_path, tmp_path / "d", form, cache=str(tmp_path / folder))
        again = take(data, 90 - 3 * steps, {"step": steps, "micro": 0}, accumulate=3)
        assert all(torch.equal(a, b) for a, b in zip(again, whole[3 * steps :], strict=True))


def test_bookmarks_spare_a_resumed_run_the_documents_before(tmp_path, monkeypatch):
    write(tmp_path / "d")
    take(make(tmp_path, tmp_path / "d"), 20)
    read = []
    data = make(tmp_path, tmp_path / "d")
    stream = type(data.tokenizer).stream
    monkeypatch.setattr(type(data.tokenizer), "stream", lambda self, texts: stream(self, read.append(texts) or texts))
    take(data, 1, {"step": 18, "micro": 0})
    assert 0 < len(read) < 8


@pytest.mark.parametrize("streaming", [True, False])
def test_a_run_that_is_resumed_often_inside_a_long_document_reads_the_same(tmp_path, streaming):
    """A block that begins inside the first document after a resume leaves a bookmark too, which the next one uses."""
    (tmp_path / "d").mkdir()
    texts = [*DOCUMENTS[:6], "".join(chr(97 + n * n % 26) for n in range(2500)), *DOCUMENTS[6:]]
    assert hash_of(texts[6].encode()) > 0.1  # so that it trains
    (tmp_path / "d" / "0.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    whole = take(make(tmp_path, tmp_path / "d", streaming=streaming, cache=str(tmp_path / "other")), 60)
    for step in range(0, 60, 6):
        again = take(make(tmp_path, tmp_path / "d", streaming=streaming), 6, {"step": step, "micro": 0})
        assert all(torch.equal(a, b) for a, b in zip(again, whole[step:], strict=False))


def test_a_damaged_bookmark_is_not_used(tmp_path):
    write(tmp_path / "d")
    whole = take(make(tmp_path, tmp_path / "d"), 20)
    (path,) = (tmp_path / "cache" / "streams").iterdir()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3][:9]]))
    again = take(make(tmp_path, tmp_path / "d"), 6, {"step": 14, "micro": 0})
    assert all(torch.equal(a, b) for a, b in zip(again, whole[14:], strict=True))


def test_held_out_documents_validate_and_do_not_train(tmp_path):
    data = make(tmp_path, write(tmp_path / "d"), validation=0.3, seq=8)
    held = [text for text in DOCUMENTS if hash_of(text.encode()) < 0.3]
    seen = "".join(data.tokenizer.decode(row) for batch in data.validation_batches() for row in batch.inputs)
    assert any(text.startswith(seen[:12]) for text in held) and len(seen) == 3 * 8
    trained = "".join(data.tokenizer.decode(row) for batch in take(data, 200) for row in batch)
    assert not any(text[:12] in trained for text in held)


def test_a_split_of_the_data_set_validates(tmp_path):
    folder = tmp_path / "d"
    for name, text in (("train", "training text " * 20), ("test", "other text to score " * 20)):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    spec = HfDataset(path=str(folder), validation_split="test", seq=16, batch=2, validation_windows=2)
    data = build(spec)
    data.prepare()
    assert all("other" in data.tokenizer.decode(row) for batch in data.validation_batches() for row in batch.inputs)
    assert "train" in data.tokenizer.decode(take(data, 1)[0].flatten())
    assert data.describe()["validation"] == "2 windows of split test"


def test_a_part_that_would_train_and_validate_is_refused():
    with pytest.raises(ValueError, match=r"split='train' would also validate; give another validation_split"):
        HfDataset(path="a", validation_split="train")


@pytest.mark.parametrize(
    ("split", "validation", "streaming", "shared"),
    [
        ("train[:80%]", "train[70%:]", False, "train"),
        ("train[:80%]", "train[80%:]", False, ""),
        ("test+train[:16]", "train[15:20]", False, "train"),
        ("train+test", "test", False, "test"),
        ("train+test", "test", True, "test"),
        ("all", "test", True, "test"),
        ("train", "test", True, ""),
    ],
)
def test_rows_that_would_train_and_validate_are_refused(tmp_path, split, validation, streaming, shared):
    folder = tmp_path / "d"
    folder.mkdir()
    for name, count in (("train", 20), ("test", 5)):
        lines = (json.dumps({"text": f"{name} {n}, " * 9}) for n in range(count))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = build(
        HfDataset(
            path=str(folder), split=split, validation_split=validation, streaming=streaming, seq=16, batch=2,
            validation_windows=2, cache=str(tmp_path / "cache"),
        )
    )  # fmt: skip
    with pytest.raises(DataError, match=rf"rows of '{shared}' would train and val") if shared else nullcontext():
        data.prepare()


def test_tokens_are_learnt_from_the_start_of_the_stream(tmp_path):
    data = make(tmp_path, write(tmp_path / "d"), tokenizer=BytePairs(vocab=280), learn_megabytes=0.001)
    again = make(tmp_path, tmp_path / "d", tokenizer=BytePairs(vocab=280))
    assert data.state() != again.state()
    again.load_state(data.state())
    assert torch.equal(take(again, 5)[4], take(data, 5)[4])


def test_other_data_has_another_fingerprint(tmp_path):
    first = make(tmp_path, write(tmp_path / "d")).fingerprint()
    assert make(tmp_path, tmp_path / "d").fingerprint() == first
    with (tmp_path / "d" / "3.jsonl").open("a") as file:
        file.write('\n{"text": "one more, far from the start"}')
    assert make(tmp_path, tmp_path / "d").fingerprint() != first


@pytest.mark.parametrize("longer", [1, 1000])
def test_an_edit_that_keeps_the_size_is_noticed_and_a_copy_is_the_same_data(tmp_path, longer):
    """In a small file anywhere; in a large one in the pieces that are compared, such as the last."""
    folder = write(tmp_path / "d", files=1)
    path = folder / "0.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS * longer))
    first = make(tmp_path, folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert make(tmp_path, tmp_path / "copy").fingerprint() == first
    before, _, after = path.read_text().rpartition("document 50")
    path.write_text(f"{before}document 5O{after}")
    assert make(tmp_path, folder).fingerprint() != first


def test_bookmarks_of_files_that_have_changed_since_are_not_used(tmp_path):
    path = write(tmp_path / "d", files=1) / "0.jsonl"
    take(make(tmp_path, tmp_path / "d"), 20)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[-1], *lines[1:-1], lines[0]]))
    fresh = take(make(tmp_path, tmp_path / "d", cache=str(tmp_path / "other")), 20)
    again = take(make(tmp_path, tmp_path / "d"), 2, {"step": 18, "micro": 0})
    assert all(torch.equal(a, b) for a, b in zip(again, fresh[18:], strict=True))


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (['{"text": "fine text"}', '{"text": null}'], {}, r"split 'train', document 2: 'text' is a NoneType\n.*'text'"),
        (
            ['{"text": "fine"}'],
            {"text_key": "body"},
            r"document 1: no 'body' among its keys 'text'(.|\n)*data.text_key",
        ),
        (['{"text": "fine"}'], {"split": "dev"}, r"datasets cannot open split 'dev' of json: .*"),
        (['{"text": "a"}'], {}, r"split 'train': \d+ tokens to validate with, a window needs 17"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, lines, options, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        make(tmp_path, tmp_path / "d", **options)


def test_files_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nowhere.*\n  expected a file"):
        make(tmp_path, tmp_path / "nowhere")


def test_more_micro_batches_than_documents_are_refused(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS[:3]))
    data = make(tmp_path, tmp_path / "d", validation=0.5, validation_windows=1, seq=8)
    with pytest.raises(DataError, match=r"a stream of documents is empty\n  expected a document for each micro-batch"):
        take(data, 9, accumulate=9)


def test_without_the_library_a_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "datasets.distributed", None)  # another test may have loaded it
    with pytest.raises(DataError, match=r"needs the package datasets\n.*pip install 'moekit\[datasets\]'"):
        make(tmp_path, tmp_path)
