"""What all text data shares: tokens from a state, windows from the training split, errors before ``prepare``."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import MoekitError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.text_files import TextFiles

WORDS = "the quick brown fox jumps over the lazy dog again and again\n"


@pytest.fixture
def folder(tmp_path):
    for domain in ("one", "two"):
        (tmp_path / domain).mkdir()
        for n in range(6):
            (tmp_path / domain / f"{n}.txt").write_text(f"{domain} {n}: " + WORDS * 5)
    return str(tmp_path)


def make(folder, **options):
    return build(TextFiles(path=folder, **{"seq": 8, "batch": 4, "validation_windows": 3, **options}))


PAIRS = {"tokenizer": BytePairs(vocab=300)}


@pytest.mark.parametrize("options", [{}, PAIRS], ids=["bytes", "bpe"])
def test_the_state_is_plain_and_enough_to_encode_and_decode(folder, options):
    data = make(folder, **options)
    data.prepare()
    stored = json.loads(json.dumps(data.state()))
    alone = make("/nowhere/at/all", **options)
    alone.load_state(stored)
    prompt = "the quick naïve fox"
    assert alone.tokenizer.encode(prompt).tolist() == data.tokenizer.encode(prompt).tolist()
    assert alone.tokenizer.decode(data.tokenizer.encode(prompt)) == prompt
    assert (stored == {}) is (options == {})


def test_prepare_keeps_a_loaded_vocabulary(folder):
    first = make(folder, **PAIRS)
    first.prepare()
    second = make(folder, tokenizer=BytePairs(vocab=280))
    second.load_state(first.state())
    second.prepare()
    assert second.state() == first.state()
    assert second.train_batch(torch.Generator()).inputs.shape == (4, 8)


def test_a_vocabulary_loaded_after_prepare_replaces_the_windows(folder, tmp_path_factory):
    """As on resuming with a text that has changed: the checkpoint's tokens apply."""
    other = tmp_path_factory.mktemp("other") / "other.txt"
    other.write_text("wholly different words here " * 40)
    stored, data = make(str(other), **PAIRS), make(folder, **PAIRS)
    stored.prepare()
    data.prepare()
    data.load_state(stored.state())
    assert data.state() == stored.state()
    assert data.domain_names() == ("one", "two")
    text = data.tokenizer.decode(data.train_batch(torch.Generator().manual_seed(0)).inputs.flatten())
    assert set(text.split()) & set(WORDS.split())


def test_byte_pairs_are_learnt_from_the_training_split_alone(tmp_path):
    (tmp_path / "t.txt").write_text("plain words only " * 30)
    (tmp_path / "v.txt").write_text("zzyzx " * 200)
    data = make(str(tmp_path / "t.txt"), validation_path=str(tmp_path / "v.txt"), **PAIRS)
    data.prepare()
    assert "zz" not in data.state()["bpe"]


def test_a_second_prepare_reads_nothing(folder, monkeypatch):
    data = make(folder)
    data.prepare()
    monkeypatch.setattr(data, "tokenised", lambda: pytest.fail("read again"))
    data.prepare()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_windows_come_from_the_training_files_alone(tmp_path_factory, seed):
    root = tmp_path_factory.mktemp("text")
    (root / "t.txt").write_text("abcdefgh" * 20)
    (root / "v.txt").write_text("01234567" * 20)
    data = make(str(root / "t.txt"), validation_path=str(root / "v.txt"))
    data.prepare()
    train = data.train_batch(torch.Generator().manual_seed(seed))
    assert set(data.tokenizer.decode(train.inputs.flatten())) <= set("abcdefgh")
    for batch in data.validation_batches():
        assert set(data.tokenizer.decode(batch.inputs.flatten())) <= set("01234567")
        assert batch.num_bytes == (batch.targets != 0).sum()


def test_validation_has_as_many_windows_of_each_domain(folder):
    data = make(folder)
    data.prepare()
    batches = list(data.validation_batches())
    assert [len(b.domain) for b in batches] == [4, 2]
    assert torch.cat([b.domain for b in batches]).tolist() == [0, 1] * 3


@pytest.mark.parametrize(("share", "windows"), [(0.6, 2), (0.3, 1), (0.01, 1)])
def test_a_partial_batch_has_that_share_of_windows_and_at_least_one(folder, share, windows):
    data = make(folder)
    data.prepare()
    batch = data.partial_batch(torch.Generator().manual_seed(0), share)
    assert batch.inputs.shape == batch.targets.shape == (windows, 8)
    assert batch.num_bytes <= 8 * windows and batch.domain.shape == (windows,)


@pytest.mark.parametrize("options", [{}, PAIRS])
def test_batches_before_prepare_are_refused(folder, options):
    data = make(folder, **options)
    with pytest.raises(MoekitError, match=r"TextFilesData has read nothing yet: call prepare\(\) first"):
        data.train_batch(torch.Generator())
    with pytest.raises(MoekitError, match=r"TextFilesData has read nothing yet: call prepare\(\) first"):
        list(data.validation_batches())
    assert data.describe() == {}
    assert data.domain_names() == ()


def test_byte_pairs_need_learning_or_loading(folder):
    data = make(folder, **PAIRS)
    for ask in (lambda: data.tokenizer.encode("x"), lambda: data.tokenizer.decode(torch.tensor([1]))):
        with pytest.raises(
            MoekitError, match=r"no byte pairs are known yet: call prepare\(\) or load_state\(\) of the data first"
        ):
            ask()
    assert data.state() == {}
