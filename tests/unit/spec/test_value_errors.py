"""Values that are not of their option's type, or out of its range: the whole report of each."""

from __future__ import annotations

import pytest

from moekit.errors import SpecError
from moekit.spec import validate

CASES: dict[str, tuple[list[str], str]] = {
    "not_an_integer": (
        ["model.moe.router.top_k=two"],
        r"""
top_k: 'two' is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
""",
    ),
    "integer_with_a_fraction": (
        ["model.moe.router.top_k=2.5"],
        r"""
top_k: 2.5 is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
""",
    ),
    "true_is_no_integer": (
        ["model.moe.router.top_k=true"],
        r"""
top_k: true is not an integer
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
""",
    ),
    "not_a_number": (
        ["optimizer.lr=fast"],
        r"""
lr: 'fast' is not a number
  at optimizer.lr  in command line
  expected a number > 0
""",
    ),
    "nan_is_no_number": (
        ["optimizer.lr=.nan"],
        r"""
lr: nan is not a number
  at optimizer.lr  in command line
  expected a number > 0
""",
    ),
    "not_true_or_false": (
        ["model.moe.router.renormalize=maybe"],
        r"""
renormalize: 'maybe' is not true or false
  at model.moe.router.renormalize  in command line
  expected true or false
""",
    ),
    "one_is_not_true": (
        ["model.moe.router.renormalize=1"],
        r"""
renormalize: 1 is not true or false
  at model.moe.router.renormalize  in command line
  expected true or false
""",
    ),
    "not_text": (
        ["summary=3.10"],
        r"""
summary: 3.1 is not text
  at summary  in command line
  expected text, in quotes
""",
    ),
    "a_list_is_no_text": (
        ["summary=[a]"],
        r"""
summary: a list is not text
  at summary  in command line
  expected text
""",
    ),
    "null_or_text": (
        ["model.note={a: 1}"],
        r"""
note: a mapping is not text
  at model.note  in command line
  expected text or null
""",
    ),
    "not_a_list": (
        ["optimizer.betas=0.9"],
        r"""
betas: 0.9 is not a list
  at optimizer.betas  in command line
  expected a list of numbers >= 0 and < 1
""",
    ),
    "an_item_of_a_list": (
        ["optimizer.betas=[0.9, high]"],
        r"""
betas[1]: 'high' is not a number
  at optimizer.betas[1]  in command line
  expected a number >= 0 and < 1
""",
    ),
    "an_index_into_a_list": (
        ["optimizer.betas.0=0.8"],
        r"""
betas: a mapping is not a list
  at optimizer.betas  in command line
  expected a list of numbers >= 0 and < 1
""",
    ),
    "not_a_mapping": (
        ["trainer=fast"],
        r"""
trainer: 'fast' is not a mapping
  at trainer  in command line
  expected a mapping to plain values
""",
    ),
    "out_of_range": (
        ["model.moe.router.top_k=9"],
        r"""
top_k: 9 is out of range
  at model.moe.router.top_k  in command line
  expected an integer >= 1 and <= 8
""",
    ),
    "an_item_out_of_range": (
        ["optimizer.betas=[0.9, 1.5]"],
        r"""
betas[1]: 1.5 is out of range
  at optimizer.betas[1]  in command line
  expected a list of numbers >= 0 and < 1
""",
    ),
    "not_one_of_the_choices": (
        ["model.moe.router.score=softmx"],
        r"""
score: 'softmx' is none of its choices
  at model.moe.router.score  in command line
  expected one of softmax, sigmoid
  did you mean 'softmax'?
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message(name: str) -> None:
    overrides, message = CASES[name]
    with pytest.raises(SpecError) as caught:
        validate("small", overrides)
    assert str(caught.value) == message.strip("\n")
