"""The tokenizer of a file: byte-level and SentencePiece-like, special tokens, the bytes that tokens spell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folders import byte_level_tokenizer, framed, sentencepiece_tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from moekit import DataError, MoekitError, build
from moekit.contracts import ModelOutput
from moekit_data.text_files import TextFiles
from moekit_hf.tokenizer import TokenizerFile
from moekit_hf.tokenizer.module import FileTokenizer
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.causal_lm.module import CausalLMObjective
from moekit_report.scoring import rows_of


def read(text: str, end: str = "", vocab: int = 300) -> FileTokenizer:
    tokenizer = FileTokenizer(TokenizerFile(vocab=vocab, end=end))
    tokenizer.load_state({"tokenizer_json": text})
    return tokenizer


@pytest.mark.parametrize("text", ["the cat", "naïve 数 😀 \t\n", "", "<|end|> in a text"])
def test_byte_level_text_comes_back_and_its_bytes_are_counted(text: str) -> None:
    tokenizer = read(byte_level_tokenizer(), end="<|end|>")
    ids = tokenizer.encode(text)
    if "<|end|>" in text:  # a special token in a text is that token, and spells nothing
        assert tokenizer.end in ids.tolist() and tokenizer.decode(ids) == " in a text"
        return
    assert ids.dtype == torch.int64 and tokenizer.decode(ids) == text
    num_bytes_V = tokenizer.num_bytes_V()
    assert num_bytes_V is not None and int(num_bytes_V[ids].sum()) == len(text.encode())


@pytest.mark.parametrize("model", [models.WordPiece, models.WordLevel])
def test_bytes_of_words_are_not_known_since_no_token_spells_a_space(tmp_path: Path, model: Any) -> None:
    words = Library(model({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert read(words.to_str()).num_bytes_V() is None
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    (tmp_path / "a.txt").write_text("the cat the " * 90)
    tokens = TokenizerFile(file=str(tmp_path / "tokenizer.json"), vocab=300)
    data = build(TextFiles(path=str(tmp_path / "a.txt"), seq=8, batch=2, cache=str(tmp_path), tokenizer=tokens))
    data.prepare()
    batch = next(data.validation_batches())
    assert batch.num_bytes is None is rows_of(batch, torch.tensor([0]), data).num_bytes
    loss = CausalLMObjective(CausalLM())(ModelOutput(y=torch.zeros(*batch.targets.shape, 300)), batch)
    assert sorted(loss.metrics) == ["loss"]


@pytest.mark.parametrize("text", ["the cat", "cat é 数", "the  the"])
def test_sentencepiece_text_comes_back(text: str) -> None:
    """Its file puts a space before each text, which its tokens spell and its text lacks."""
    tokenizer = read(sentencepiece_tokenizer(), end="</s>")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.end == 2 not in ids.tolist()
    assert b"".join(tokenizer.spelling[i] for i in ids.tolist()) == b" " + text.encode()


def test_special_tokens_spell_nothing_and_no_text_begins_with_one() -> None:
    tokenizer = read(sentencepiece_tokenizer(), end="</s>")
    assert tokenizer.spelling[:3] == (b"", b"", b"")
    assert tokenizer.decode(torch.tensor([1, *tokenizer.encode("cat").tolist(), 2, 9999])) == "cat"
    assert not {1, 2} & set(tokenizer.encode("cat").tolist())


def test_a_file_may_put_tokens_before_a_text_and_its_limits_of_another_use_do_not_count() -> None:
    plain, tokenizer = read(sentencepiece_tokenizer()), read(framed(sentencepiece_tokenizer(), "<s>", "</s>"))
    assert (list(plain.begin), list(tokenizer.begin)) == ([], [1])
    assert torch.equal(tokenizer.encode("cat the cat " * 9), plain.encode("cat the cat " * 9))


def test_it_is_read_from_its_file_and_saved_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer())
    tokenizer = FileTokenizer(TokenizerFile(vocab=300, file=str(tmp_path / "tokenizer.json"), end="<|end|>"))
    assert tokenizer.spelling == () and tokenizer.state() == {}
    with pytest.raises(MoekitError, match="no tokenizer was read yet"):
        tokenizer.encode("a")
    tokenizer.train([])
    again = FileTokenizer(TokenizerFile(vocab=300, end="<|end|>"))
    again.load_state(tokenizer.state())
    assert torch.equal(again.encode("the cat"), tokenizer.encode("the cat")) and again.spelling == tokenizer.spelling


@pytest.mark.parametrize(
    ("state", "end", "vocab", "message"),
    [
        ({"tokenizer_json": "{}"}, "", 300, "not a tokenizer.json"),
        ({"bpe": "{}"}, "", 300, "not those of a tokenizer.json"),
        ({"tokenizer_json": byte_level_tokenizer()}, "", 20, "more than vocab=20"),
        ({"tokenizer_json": byte_level_tokenizer()}, "</s>", 300, "has no token '</s>'"),
    ],
)
def test_a_state_that_does_not_fit(state: dict[str, str], end: str, vocab: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FileTokenizer(TokenizerFile(vocab=vocab, end=end)).load_state(state)


@pytest.mark.parametrize(("file", "message"), [("", "no checkpoint brings a tokenizer"), ("gone.json", "No such file")])
def test_a_file_that_is_not_there(file: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FileTokenizer(TokenizerFile(file=file)).train([])
