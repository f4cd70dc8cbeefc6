"""Plain text: columns that align and fit."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.cli import text

ROWS = [("topk", "each token takes its best experts", "routers"), ("dense", "all of them", "routers")]


def test_columns_are_aligned() -> None:
    assert text.table(ROWS, limit=100) == [
        "  topk   each token takes its best experts  routers",
        "  dense  all of them                        routers",
    ]


def test_a_column_folds_to_fit() -> None:
    assert text.table(ROWS, limit=40, fold=(1,)) == [
        "  topk   each token takes its    routers",
        "         best experts",
        "  dense  all of them             routers",
    ]


def test_a_column_is_never_folded_to_nothing() -> None:
    assert text.table([("name", "x" * 9 + " " + "y" * 30)], limit=5, fold=(1,)) == [
        "  name  xxxxxxxxx",
        "        " + "y" * 30,
    ]


def test_an_empty_column_takes_no_room() -> None:
    assert text.table([("a", "", "b")], limit=80) == ["  a  b"]


def test_sizes_align_two_tables() -> None:
    sizes = text.columns([("long name", "x"), ("b", "longer")])
    assert text.table([("b", "x")], sizes=sizes, limit=80) == ["  b          x"]


def test_a_table_without_rows_has_no_lines() -> None:
    assert text.table([]) == []


def test_a_paragraph_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert text.paragraph("one two three four five") == ["  one two three four", "  five"]


def test_the_width_is_unlimited_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert text.width() is None
    monkeypatch.setenv("COLUMNS", "77")
    assert text.width() == 77


def test_bold_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text.bold("x") == "x"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert text.bold("x") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert text.bold("x") == "x"


WORDS = st.lists(st.text("abc", min_size=1, max_size=9), max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4), limit=st.integers(70, 200))
def test_folding_loses_no_word_and_keeps_to_the_limit(rows: list[tuple[str, str, str]], limit: int) -> None:
    lines = text.table(rows, fold=(0, 1, 2), limit=limit)
    assert all(len(line) <= limit for line in lines)
    assert sorted(" ".join(lines).split()) == sorted(" ".join(" ".join(row) for row in rows).split())
