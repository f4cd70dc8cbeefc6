import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import DataError
from moekit_data.tokens import ByteTokens, PairTokens, chunks, from_state

examples = settings(max_examples=80, deadline=None)
CORPUS = [b"the cat sat on the mat. " * 20, "naïve café, the thé\n".encode() * 20, b"def the():\n    return the\n" * 20]
PAIRS = PairTokens.learn(CORPUS, 280)
both = pytest.mark.parametrize("tokens", [ByteTokens(), PAIRS], ids=["bytes", "pairs"])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@both
@examples
@given(text=texts)
def test_any_text_is_spelt_exactly(tokens, text):
    ids = tokens.encode_text(text)
    assert ids.dtype == torch.int64
    assert tokens.decode(ids) == text
    assert tokens.num_bytes_V()[ids].sum() == len(text.encode())


@both
@examples
@given(documents=st.lists(texts, max_size=4))
def test_a_stream_is_the_documents_and_a_separator_after_each(tokens, documents):
    stream = tokens.encode([d.encode() for d in documents])
    assert stream.dtype == tokens.dtype
    separator = tokens.encode([b""])
    expected = [t for d in documents for t in [*tokens.encode_text(d).tolist(), separator.item()]]
    assert stream.tolist() == expected
    assert tokens.num_bytes_V()[stream.long()].sum() == sum(len(d.encode()) for d in documents)
    assert tokens.num_bytes_V()[separator.long()] == 0
    assert tokens.decode(stream) == "".join(documents)


@both
def test_the_separator_is_the_character_nul(tokens):
    assert tokens.encode_text("\0").tolist() == tokens.encode([b""]).tolist()


def test_byte_tokens_are_the_bytes_of_utf8():
    assert ByteTokens().encode_text("aé").tolist() == [97, 0xC3, 0xA9]


@both
def test_half_a_character_becomes_the_replacement(tokens):
    half = torch.tensor([tokens.spelling.index(b"\xc3")])
    assert tokens.decode(half) == "\ufffd"


@both
def test_lone_surrogates_are_replaced(tokens):
    assert tokens.decode(tokens.encode_text("a\ud800b")) == "a?b"


@both
def test_numbers_beyond_the_vocabulary_spell_nothing(tokens):
    assert tokens.decode(torch.tensor([100_000, *tokens.encode_text("ok").tolist(), -1])) == "ok"


def test_pairs_are_learnt_and_shorten_text():
    assert len(PAIRS.spelling) == 280
    assert len(set(PAIRS.spelling)) == 280
    assert b" the" in PAIRS.spelling
    assert len(PAIRS.encode_text("the cat on the mat")) < 9
    assert not any(b"\0" in piece and piece != b"\0" for piece in PAIRS.spelling)


def test_learning_is_deterministic():
    assert PairTokens.learn(CORPUS, 280).state == PAIRS.state


def test_little_text_gives_fewer_pairs():
    assert 256 < len(PairTokens.learn([b"abab"], 4096).spelling) < 300


def test_a_state_restores_the_same_tokens():
    again = from_state(PAIRS.state, "bpe")
    assert again.spelling == PAIRS.spelling
    assert again.encode_text("the naïve cat").tolist() == PAIRS.encode_text("the naïve cat").tolist()
    assert from_state(ByteTokens().state, "bytes").encode_text("x").tolist() == [120]
    assert from_state({}, "bpe") is None


@pytest.mark.parametrize("json", ["", "{}", '{"model": 3}', PAIRS.state["bpe"][:500], 7])
def test_a_damaged_state_is_refused(json):
    with pytest.raises(DataError, match="not a byte-pair tokenizer that moekit wrote"):
        from_state({"bpe": json}, "bpe")


def test_a_state_of_the_other_kind_is_refused():
    with pytest.raises(DataError, match="the stored state holds byte pairs, but the spec says tokens=bytes"):
        from_state(PAIRS.state, "bytes")


@examples
@given(st.lists(st.text("ab\né", max_size=12), max_size=8), st.integers(1, 9))
def test_chunks_are_the_document_and_end_with_lines(lines, size):
    document = "\n".join(lines).encode()
    found = list(chunks(document, size))
    assert "".join(found).encode() == document
    assert all(piece.endswith("\n") and len(piece.encode()) >= size for piece in found[:-1])
