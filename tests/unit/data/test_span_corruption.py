"""Span corruption: source and target restore the window; number, length and placement of spans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import Batch
from moekit.errors import DataError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.span_corruption import SpanCorruption
from moekit_data.span_corruption.module import SpanCorruptionData, parts
from moekit_data.text_files import TextFiles
from moekit_data.vowels import Vowels

END = 256


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for domain in ("one", "two"):
        (tmp_path / domain).mkdir()
        for n in range(6):
            (tmp_path / domain / f"{n}.txt").write_text(f"{domain} {n}: " + "naïve words, some of them longer\n" * 9)
    return str(tmp_path)


def text(path: str = "nowhere", seq: int = 32, **options: object) -> TextFiles:
    return TextFiles(path=path, seq=seq, batch=4, validation_windows=3, **options)  # type: ignore[arg-type]


def made(spec: SpanCorruption) -> SpanCorruptionData:
    data = cast(SpanCorruptionData, build(spec))
    if spec.text.path != "nowhere":  # type: ignore[attr-defined]
        data.prepare()
    return data


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def restored(source: list[int], target: list[int], end: int = END) -> list[int]:
    """The window: each sentinel of the source replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token > end:
            assert token not in spans, "a sentinel occurs twice"
            spans[token] = []
            last = token
        elif token == end:
            break
        else:
            spans[last].append(token)
    out: list[int] = []
    for token in source:
        out += spans.pop(token) if token > end else [token]
    assert not spans, "a span whose sentinel is not in the source"
    return out


@given(st.integers(1, 90), st.floats(0.01, 0.99), st.floats(1, 8), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_source_and_target_restore_the_window(length: int, density: float, mean_span: float, seed: int) -> None:
    spec = SpanCorruption(text=text(), density=density, mean_span=mean_span, vocab=END + 1 + 90, sentinels=90)
    window = torch.randint(END, (length,), generator=draws(seed))
    source, target = made(spec).corrupt(window, draws(seed))
    assert source.dtype == target.dtype == torch.int64
    assert restored(source.tolist(), target.tolist()) == window.tolist()
    num_cut, num_spans = spec.cuts(length)
    assert (len(source), len(target)) == (length - num_cut + num_spans, num_cut + num_spans)
    marks = [token for token in source.tolist() if token > END]
    assert marks == [token for token in target.tolist() if token > END] == list(range(END + 1, END + 1 + num_spans))
    assert all(not (a > END and b > END) for a, b in zip(source.tolist(), source.tolist()[1:], strict=False))


def test_counts_of_tokens_and_spans_are_t5s() -> None:
    """512 tokens, 15% in spans of 3: 77 tokens in 26 spans."""
    spec = SpanCorruption(text=text(seq=512))
    assert spec.cuts(512) == (77, 26)
    assert [spec.cuts(n) for n in (0, 1, 2, 3)] == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert SpanCorruption(text=text(), density=0.99, mean_span=1.0).cuts(4) == (3, 2)  # a token between two spans


def test_a_batch_has_source_target_and_bytes_of_its_windows(folder: str) -> None:
    data = made(SpanCorruption(text=text(folder)))
    batch = data.train_batch(draws())
    windows = data.text.train_batch(draws()).targets
    assert batch.source is not None and batch.source.valid is not None and batch.valid is not None
    num_cut, num_spans = data.spec.cuts(32)
    assert (num_cut, num_spans) == (5, 2)
    assert (batch.source.valid.sum(1) == 32 - 5 + 2).all() and (batch.valid.sum(1) == 5 + 2 + 1).all()
    for b in range(4):
        source, target = batch.source.tokens[b][batch.source.valid[b]], batch.targets[b][batch.valid[b]]
        assert restored(source.tolist(), target.tolist()) == windows[b].tolist()
        assert target[-1] == END and (target[:-1] != END).all()
        assert batch.inputs[b][batch.valid[b]].tolist() == [END, *target[:-1].tolist()]
    spelt = [token for token in batch.targets[batch.valid].tolist() if 0 < token < END]
    assert batch.num_bytes == len(spelt)  # a byte a token; the end, sentinels and separators spell none
    assert int(batch.targets.max()) < data.spec.vocab


def test_a_partial_batch_has_a_source_and_a_target_of_each_of_its_windows(folder: str) -> None:
    batch = made(SpanCorruption(text=text(folder))).partial_batch(draws(), 0.5)
    assert batch.source is not None and len(batch.source.tokens) == len(batch.targets) == 2


def test_equal_windows_are_corrupted_differently() -> None:
    data, generator = made(SpanCorruption(text=text())), draws(5)
    assert len({tuple(data.corrupt(torch.arange(32), generator)[0].tolist()) for _ in range(5)}) == 5


def test_padding_of_the_text_is_not_part_of_a_window() -> None:
    data = made(SpanCorruption(text=text()))
    tokens = torch.arange(40).reshape(2, 20)
    valid = torch.arange(20) < torch.tensor([[20], [7]])
    batch = data.pairs(Batch(tokens, tokens, valid), draws())
    assert batch.source is not None and batch.source.valid is not None and batch.valid is not None
    for b, length in enumerate((20, 7)):
        source, target = batch.source.tokens[b][batch.source.valid[b]], batch.targets[b][batch.valid[b]]
        assert restored(source.tolist(), target.tolist()) == tokens[b, :length].tolist()


def test_every_placement_of_spans_is_equally_likely() -> None:
    """Every inner token is removed equally often; the first and the last are in half as many placements."""
    data = made(SpanCorruption(text=text(), density=0.2, mean_span=2.0))
    counts = torch.zeros(10)
    generator = draws()
    for _ in range(3000):
        source, _ = data.corrupt(torch.arange(10), generator)  # one span of 2 of 10
        counts += 1 - torch.isin(torch.arange(10), source).float()
    # nine placements, equally likely: the ends are in one of them, every other token in two
    expected = torch.tensor([1.0] + [2.0] * 8 + [1.0]) / 9
    torch.testing.assert_close(counts / 3000, expected, rtol=0, atol=0.04)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_parts_are_positive_and_add_up(total: int, count: int, seed: int) -> None:
    count = min(count, total)
    found = parts(total, count, draws(seed))
    assert len(found) == count and sum(found) == total and min(found) >= 1


def test_all_partitions_are_equally_likely() -> None:
    generator = draws()
    counts = Counter(tuple(parts(5, 3, generator)) for _ in range(3000))
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert max(counts.values()) < 600 and min(counts.values()) > 400


def test_sentinels_are_encoded_and_decoded_as_numbers_in_brackets(folder: str) -> None:
    data = made(SpanCorruption(text=text(folder)))
    ids = data.tokenizer.encode("The <0> naïve<1>")
    assert ids[4] == END + 1 and ids[-1] == END + 2 and ids.dtype == torch.int64
    assert data.tokenizer.decode(ids) == "The <0> naïve<1>"
    assert data.tokenizer.decode(torch.cat([ids[:4], torch.tensor([END]), ids])) == "The "  # up to the end
    assert data.tokenizer.encode("array<63> <x>").max() < END  # there are sentinels 0 to 62
    assert data.tokenizer.encode("").shape == (0,) and data.tokenizer.decode(ids[:0]) == ""
    assert data.tokenizer.end == END
    example = data.tokenizer.encode(data.tokenizer.example())
    assert example[example > END].tolist() == [END + 1, END + 2]
    assert data.domain_names() == ("one", "two")
    assert data.describe()["corruption"] == "5 of 32 tokens removed, in 2 spans"


def test_the_state_is_the_texts_byte_pairs(folder: str) -> None:
    spec = SpanCorruption(text=text(folder, tokenizer=BytePairs(vocab=300)), vocab=320, sentinels=19)
    data = made(spec)
    batch = data.train_batch(draws())
    assert batch.num_bytes is not None
    texts = [data.text.tokenizer.decode(t[t < 300]) for t in batch.targets]
    assert int(batch.num_bytes) >= sum(len(s.encode()) for s in texts if "\ufffd" not in s) > 0
    alone = build(SpanCorruption(text=text(tokenizer=BytePairs(vocab=300)), vocab=320, sentinels=19))
    alone.load_state(data.state())
    assert data.state() and alone.tokenizer.encode("naïve <0>").tolist() == data.tokenizer.encode("naïve <0>").tolist()


def test_impossible_options_and_too_long_windows_are_refused() -> None:
    with pytest.raises(
        ValueError, match="vocab=319 is too small for the 256 tokens of TextFiles and its own: 320 or more are needed"
    ):
        SpanCorruption(text=text(), vocab=319)
    with pytest.raises(ValueError, match="sentinels=2 are too few: a window of 128 tokens has 6 spans"):
        SpanCorruption(text=text(seq=128), sentinels=2)
    with pytest.raises(ValueError, match="text: Vowels yields 'cases' and no text tokens; take local_text or text_f"):
        SpanCorruption(text=Vowels())
    with pytest.raises(ValueError, match=r"text\.documents=masked has no effect on pairs made of the text"):
        SpanCorruption(text=text(documents="masked"))
    data = made(SpanCorruption(text=text(), sentinels=2))
    with pytest.raises(DataError, match="a window of 128 tokens has 6 spans, and there are 2"):
        data.corrupt(Tensor(128).long(), draws())
