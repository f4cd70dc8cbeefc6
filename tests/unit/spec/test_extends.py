"""``extends``: the order of files, what a message calls them, circles, and files that are not UTF-8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from spec_fakes import Pick, Step

from moekit.errors import SpecError
from moekit.spec import load

Write = Callable[[str, str], str]


def test_files_extend_in_order(write: Write) -> None:
    write("parts/left.yaml", "extends: ../base.yaml\nmodel: {width: 1}\noptimizer: {lr: 1.0}\n")
    write("parts/right.yaml", "extends: ../base.yaml\nmodel: {width: 2}\n")
    write("base.yaml", "extends: small\noptimizer: {lr: 9.0}\n")
    write("mine.yaml", "extends: [parts/left.yaml, parts/right.yaml]\nseed: 5\n")
    recipe = load("mine.yaml")
    assert (recipe.seed, recipe.model.width) == (5, 2)
    assert recipe.optimizer == Step(lr=1.0)  # base.yaml counts once, before left.yaml
    assert recipe.model.moe.router == Pick(top_k=2)


def test_a_mapping_extends() -> None:
    assert load({"extends": "small", "model": {"width": 3}}).model.width == 3


def test_a_file_may_have_its_parents_name(write: Write) -> None:
    write("small.yaml", "extends: small\nmodel: {width: 3}\n")
    assert load("small.yaml").model.width == 3


def test_an_error_names_the_parents_file(write: Write) -> None:
    write("parts/base.yaml", "model:\n  use: tower\n  width: no\n")
    write("mine.yaml", "extends: parts/base.yaml\nmodel: {vocab: -1}\n")
    with pytest.raises(SpecError) as caught:
        load("mine.yaml")
    places = {p.at: p.source for p in caught.value.problems}
    assert places == {"model.width": "parts/base.yaml, line 3", "model.vocab": "mine.yaml, line 2"}


def test_a_circle_shows_its_chain(write: Write) -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: [small, deep/c.yaml]\n")
    write("deep/c.yaml", "extends: ../b.yaml\n")
    with pytest.raises(SpecError) as caught:
        load("a.yaml")
    assert str(caught.value) == (
        "extends goes in a circle: b.yaml -> deep/c.yaml -> b.yaml\n  at extends  in deep/c.yaml, line 1"
    )


def test_a_recipe_of_a_broken_plugin(write: Write) -> None:
    write("mine.yaml", "extends: broken/thing\n")
    with pytest.raises(SpecError) as caught:
        load("mine.yaml")
    assert str(caught.value) == (
        "recipe 'broken/thing' cannot be used: plugin 'broken' (moekit-broken) failed to load\n"
        "  ImportError: no such luck\n"
        "  see: moekit plugins\n"
        "  at extends  in mine.yaml, line 1"
    )


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("seed: 1\nsummary: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(SpecError) as caught:
        load("latin.yaml")
    assert str(caught.value) == "not UTF-8 text\n  in latin.yaml, line 2"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfextends: small\n")
    assert load("mark.yaml").name == "mark"
