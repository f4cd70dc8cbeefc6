"""Checks of tokenizers: text to tokens and back, the bytes that tokens spell, what is learnt and restored."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from moekit.contracts import Tokenizer
from moekit.spec.kinds import TokenizerSpec
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check

TEXTS = ("the cat sat on the mat", "def add(a, b):\n    return a + b\n", "12 of 345, and a tab:\t.", "")
DOCUMENTS = tuple(text.encode() * 20 for text in TEXTS)


def checks(case: Case) -> Iterator[Check]:
    """The checks of a tokenizer."""
    yield from (check_token_numbers, check_text_restored, check_bytes_of_tokens, check_stream)
    yield from (check_learning_repeats, check_tokenizer_state)


def check_token_numbers(case: Case) -> None:
    """Encodes text as int64 ``[S]`` of numbers below ``len(spelling)``, which is at most the spec's ``vocab``."""
    tokenizer = _trained(case)
    size, vocab = len(tokenizer.spelling), case.spec_as(TokenizerSpec).vocab
    require(0 < size <= vocab, found=f"{size} tokens", expected=f"1 to {vocab}")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        shape = f"{ids.dtype} {list(ids.shape)}"
        require(ids.dtype == torch.int64 and ids.ndim == 1, found=shape, expected="torch.int64 [S]")
        fit = bool(((ids >= 0) & (ids < size)).all())
        require(fit, found=f"tokens {ids.min()} to {ids.max()}" if len(ids) else "", expected=f"0 to {size - 1}")
        require(tokenizer.end not in ids.tolist(), found="the end in a text", expected="text without an end")


def check_text_restored(case: Case) -> None:
    """Decodes what it encodes to the same text, and numbers that are no token to nothing."""
    tokenizer = _trained(case)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        unknown = torch.tensor([len(tokenizer.spelling) + 7])
        for what, given in (("its tokens", ids), ("its tokens and a number that is none", torch.cat([ids, unknown]))):
            found = tokenizer.decode(given)
            require(found == text, found=f"{found!r} for {what}", expected=repr(text))


def check_bytes_of_tokens(case: Case) -> None:
    """Says how many bytes each token spells, if it knows: a text's add up to its length in UTF-8, the end has none.

    Bits per byte are computed from them.
    """
    tokenizer = _trained(case)
    num_bytes_V = tokenizer.num_bytes_V()
    if num_bytes_V is None:
        return
    for text in TEXTS:
        found = int(num_bytes_V[tokenizer.encode(text)].sum())
        require(found == len(text.encode()), found=f"{found} bytes for {text!r}", expected=f"{len(text.encode())}")
    if tokenizer.end is not None:
        spelt = int(num_bytes_V[tokenizer.end])
        require(spelt == 0, found=f"{spelt} bytes for the end", expected="0")


def check_stream(case: Case) -> None:
    """Encodes documents as one row, each with the end after it."""
    tokenizer = _trained(case)
    last = [] if tokenizer.end is None else [tokenizer.end]
    expected = [token for text in TEXTS for token in [*tokenizer.encode(text).tolist(), *last]]
    found = tokenizer.stream(text.encode() for text in TEXTS)
    same = not found.is_floating_point() and found.tolist() == expected
    wanted = f"the {len(expected)} tokens of all, with ends"
    require(same, found=f"{found.dtype}, {len(found)} tokens", expected=wanted)


def check_learning_repeats(case: Case) -> None:
    """Learns the same from the same documents, so that a run can be repeated."""
    one, other = (_trained(case).encode(TEXTS[0]).tolist() for _ in range(2))
    require(one == other, found=f"{one}, then {other}", expected="the same tokens")


def check_tokenizer_state(case: Case) -> None:
    """Saves what it learnt as plain values, from which another one encodes and decodes alike without learning."""
    tokenizer, again = _trained(case), _built(case)
    try:
        plain = json.loads(json.dumps(tokenizer.state()))
    except TypeError as error:
        require(False, found=f"a state that is not plain: {error}", expected="numbers, text, lists and mappings")
    again.load_state(plain)
    for text in TEXTS:
        one, other = tokenizer.encode(text), again.encode(text)
        require(torch.equal(one, other), found=f"{other.tolist()} for {text!r}", expected=str(one.tolist()))
        require(again.decode(one) == text, found=repr(again.decode(one)), expected=repr(text))


def _built(case: Case) -> Tokenizer:
    tokenizer = case.build_raw()
    require(isinstance(tokenizer, Tokenizer), found=type(tokenizer).__name__, expected="a subclass of moekit.Tokenizer")
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


def _trained(case: Case) -> Tokenizer:
    tokenizer = _built(case)
    tokenizer.train(DOCUMENTS)
    return tokenizer
