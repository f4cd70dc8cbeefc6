import re

import pytest
import torch

from moekit.errors import DataError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.corpus import Document
from moekit_data.local_text import LocalText
from moekit_data.local_text.sources import SOURCES

SMALL = {"megabytes": 0.1, "seq": 32, "batch": 6, "validation_windows": 10}


def prepared(**options):
    data = build(LocalText(**{**SMALL, **options}))
    data.prepare()
    return data


def fake(texts):
    return lambda: (Document(key, text) for key, text in texts.items())


def test_every_domain_has_equal_bytes_of_real_text():
    data = prepared()
    assert data.domain_names() == ("python", "cpp", "prose")
    description = data.describe()
    for name in data.domain_names():
        assert re.match(r"train 0\.09 MB in \d+ texts, validation 0\.01 MB in \d+ texts?", description[name])
    batch = data.train_batch(torch.Generator().manual_seed(0))
    assert batch.inputs.shape == batch.targets.shape == (6, 32)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.num_bytes == (batch.targets != 0).sum()
    assert batch.domain.shape == (6,)


def test_no_validation_document_is_in_training():
    train, validation = {}, {}
    for domain in build(LocalText(**SMALL)).read()[0]:
        train |= dict.fromkeys(domain.train)
        validation |= dict.fromkeys(domain.validation)
    assert not train.keys() & validation.keys()
    assert len(train) > 10
    assert len(validation) >= 3


def test_byte_pairs_are_exact_in_bytes():
    data = prepared(tokenizer=BytePairs(vocab=400), domains=["python", "prose"])
    assert data.describe()["tokens"].startswith("400 byte pairs, ")
    pieces = data.state()["bpe"]
    again = build(LocalText(**SMALL, tokenizer=BytePairs(vocab=400)))
    again.load_state({"bpe": pieces})
    for batch in [data.train_batch(torch.Generator().manual_seed(1)), *data.validation_batches()]:
        assert batch.targets.max() < 400
        windows = [again.tokenizer.decode(row) for row in batch.targets]
        if not any("\ufffd" in text for text in windows):  # otherwise a window ends within a character
            assert batch.num_bytes.item() == sum(len(text.encode()) for text in windows)
    text = "def f(x):\n    return x  # naïve\n"
    assert data.tokenizer.decode(data.tokenizer.encode(text)) == text


def test_a_missing_domain_is_skipped_and_described(monkeypatch):
    monkeypatch.setitem(SOURCES, "cpp", fake({}))
    data = prepared()
    assert data.domain_names() == ("python", "prose")
    assert data.describe()["cpp"] == "skipped: no files of this kind on this machine"
    assert set(data.train_batch(torch.Generator().manual_seed(0)).domain.tolist()) == {0, 1}


def test_an_error_only_when_all_domains_are_missing(monkeypatch):
    monkeypatch.setitem(SOURCES, "python", fake({}))
    monkeypatch.setitem(SOURCES, "cpp", fake({"include/a.h": b""}))
    with pytest.raises(DataError, match="this machine has no text for any of the domains python, cpp") as caught:
        prepared(domains=["python", "cpp"])
    assert "data: {use: text_files, path: FOLDER}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": ["python", "klingon"]}, "has klingon; the choices are python, torch_python, cpp, prose"),
        ({"domains": []}, "must name at least one domain, and each once"),
        ({"domains": ["cpp", "cpp"]}, "must name at least one domain, and each once"),
        ({"megabytes": 0.0}, r"megabytes=0.0 is out of range \(> 0 and <= 50\)"),
        ({"validation": 1.0}, r"validation=1.0 is out of range \(> 0 and < 1\)"),
    ],
)
def test_the_local_text_spec_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LocalText(**options)


def test_nothing_is_read_at_construction(monkeypatch):
    def explode():
        raise AssertionError("read too early")

    for name in SOURCES:
        monkeypatch.setitem(SOURCES, name, explode)
    build(LocalText())
