"""What all text data shares: tokens from a state, windows from the training split, errors before ``prepare``."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import DataError, MoekitError
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


def test_a_domain_that_limits_the_validation_set_is_named(folder):
    (Path(folder) / "small").mkdir()
    (Path(folder) / "small" / "0.txt").write_text(WORDS * 5)
    few, many = make(folder), make(folder, validation_windows=1000)
    for data in (few, many):
        data.prepare()
    assert "validation" not in few.describe()
    count = sum(len(batch.inputs) for batch in many.validation_batches()) // 3
    said = f"{count} windows per domain, of the 1,000 requested, limited by domain small"
    assert many.describe()["validation"] == said


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


def test_masked_documents_are_marked_from_their_ends(folder):
    for options in ({}, PAIRS):
        data = make(folder, documents="masked", **options)
        data.prepare()
        for batch in (data.train_batch(torch.Generator().manual_seed(0)), next(data.validation_batches())):
            assert torch.equal(batch.document, (batch.inputs == data.tokenizer.end).cumsum(1))
    data = make(folder)
    data.prepare()
    assert data.train_batch(torch.Generator()).document is None


def test_documents_cannot_be_masked_without_an_end(folder, monkeypatch):
    monkeypatch.setattr("moekit_data.bytes.module.ByteTokenizer.end", None)
    with pytest.raises(DataError, match=r"documents=masked: ByteTokenizer has no token that ends a document"):
        make(folder, documents="masked").prepare()


def shares(folder, **options):
    data = make(folder, batch=4000, **options)
    data.prepare()
    domain = data.train_batch(torch.Generator().manual_seed(0)).domain
    return {name: float((domain == i).float().mean()) for i, name in enumerate(data.domain_names())}, data.describe()


def test_domains_are_sampled_by_weights_or_by_a_temperature(folder):
    (Path(folder) / "one" / "big.txt").write_text("".join(f"{n} {WORDS}" for n in range(500)))
    found, described = shares(folder, weights={"two": 3})
    assert found["two"] == pytest.approx(0.75, abs=0.03)
    assert described["mixture"] == "one 25.0%, two 75.0%"
    sizes = {d.name: len(d.train) for d in make(folder).tokenised().domains}
    for temperature in (1.0, 4.0):
        size = {name: n ** (1 / temperature) for name, n in sizes.items()}
        found, _ = shares(folder, temperature=temperature)
        assert found["one"] == pytest.approx(size["one"] / sum(size.values()), abs=0.03)
    assert shares(folder)[0]["one"] == pytest.approx(0.5, abs=0.03)


def test_weights_of_domains_that_do_not_exist_are_refused(folder):
    with pytest.raises(DataError, match=r"data.weights: no domain 'too' .*mean 'two'.\)\n  the domains are one, two"):
        make(folder, weights={"too": 2.0}).prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"a": 0.0}}, "the weight of a must be more than 0"),
        ({"weights": {"a": 1.0}, "temperature": 2.0}, "weights and temperature are both given"),
    ],
)
def test_weights_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        TextFiles(path="x", **options)
