import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import DataError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.bpe.module import chunks
from moekit_data.bytes import Bytes

examples = settings(max_examples=80, deadline=None)
CORPUS = [b"the cat sat on the mat. " * 20, "naïve café, the thé\n".encode() * 20, b"def the():\n    return the\n" * 20]


def learnt(corpus=CORPUS, vocab=280):
    tokens = build(BytePairs(vocab=vocab))
    tokens.train(corpus)
    return tokens


PAIRS = learnt()
both = pytest.mark.parametrize("tokens", [build(Bytes()), PAIRS], ids=["bytes", "pairs"])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@both
@examples
@given(text=texts)
def test_any_text_is_spelt_exactly(tokens, text):
    ids = tokens.encode(text)
    assert ids.dtype == torch.int64
    assert tokens.decode(ids) == text
    assert tokens.num_bytes_V()[ids].sum() == len(text.encode())


@both
@examples
@given(documents=st.lists(texts, max_size=4))
def test_a_stream_is_the_documents_and_the_end_after_each(tokens, documents):
    stream = tokens.stream([d.encode() for d in documents])
    assert stream.element_size() <= 4
    expected = [t for d in documents for t in [*tokens.encode(d).tolist(), tokens.end]]
    assert stream.tolist() == expected
    assert tokens.num_bytes_V()[stream.long()].sum() == sum(len(d.encode()) for d in documents)
    assert tokens.num_bytes_V()[tokens.end] == 0
    assert tokens.decode(stream) == "".join(documents)


@both
def test_the_end_is_the_character_nul(tokens):
    assert tokens.encode("\0").tolist() == tokens.stream([b""]).tolist() == [tokens.end]


def test_byte_tokens_are_the_bytes_of_utf8():
    assert build(Bytes()).encode("aé").tolist() == [97, 0xC3, 0xA9]


@both
def test_half_a_character_becomes_the_replacement(tokens):
    half = torch.tensor([tokens.spelling.index(b"\xc3")])
    assert tokens.decode(half) == "\ufffd"


@both
def test_lone_surrogates_are_replaced(tokens):
    assert tokens.decode(tokens.encode("a\ud800b")) == "a?b"


@both
def test_numbers_beyond_the_vocabulary_spell_nothing(tokens):
    assert tokens.decode(torch.tensor([100_000, *tokens.encode("ok").tolist(), -1])) == "ok"


def test_pairs_are_learnt_and_shorten_text():
    assert len(PAIRS.spelling) == 280
    assert len(set(PAIRS.spelling)) == 280
    assert b" the" in PAIRS.spelling
    assert len(PAIRS.encode("the cat on the mat")) < 9
    assert not any(b"\0" in piece for piece in PAIRS.spelling)


def test_learning_is_deterministic():
    assert learnt().state() == PAIRS.state()


def test_little_text_gives_fewer_pairs():
    assert 256 < len(learnt([b"abab"], 4096).spelling) < 300


def test_a_state_restores_the_same_tokens():
    again = build(BytePairs(vocab=300))
    assert not again.spelling and again.end is None and again.state() == {}
    again.load_state(PAIRS.state())
    assert again.spelling == PAIRS.spelling and again.end == PAIRS.end
    assert again.encode("the naïve cat").tolist() == PAIRS.encode("the naïve cat").tolist()
    again.load_state({})
    assert not again.spelling and again.state() == {}


@pytest.mark.parametrize("json", ["", "{}", '{"model": 3}', PAIRS.state()["bpe"][:500], 7])
def test_a_damaged_state_is_refused(json):
    with pytest.raises(DataError, match="not a byte-pair tokenizer that moekit wrote"):
        build(BytePairs(vocab=300)).load_state({"bpe": json})


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(DataError, match="the stored state is of learnt tokens, but the tokenizer is bytes"):
        build(Bytes()).load_state(PAIRS.state())


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (Bytes, {"vocab": 512}, r"vocab=512 is out of range \(>= 256 and <= 256\)"),
        (BytePairs, {"vocab": 256}, r"vocab=256 is out of range \(> 256\)"),
    ],
)
def test_the_size_of_a_vocabulary_is_checked(spec, options, message):
    with pytest.raises(ValueError, match=message):
        spec(**options)


@examples
@given(st.lists(st.text("ab\né", max_size=12), max_size=8), st.integers(1, 9))
def test_chunks_are_the_document_and_end_with_lines(lines, size):
    document = "\n".join(lines).encode()
    found = list(chunks(document, size))
    assert "".join(found).encode() == document
    assert all(piece.endswith("\n") and len(piece.encode()) >= size for piece in found[:-1])
