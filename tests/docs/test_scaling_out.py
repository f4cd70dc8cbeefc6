"""The tables of ``docs/scaling_out.md`` are the output of ``moekit plan``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

import make_scaling_out  # noqa: E402


def test_the_page_shows_every_command_and_the_current_formulas() -> None:
    stored = make_scaling_out.PAGE.read_text(encoding="utf-8")
    assert all(f"`{case.command}`" in stored for case in make_scaling_out.CASES)
    assert make_scaling_out.EXPLAIN in stored


def test_the_tables_of_the_smallest_case_are_current() -> None:
    stored = make_scaling_out.PAGE.read_text(encoding="utf-8")
    assert make_scaling_out.tables(make_scaling_out.CASES[0]) in stored, "run: python docs/make_scaling_out.py"


@pytest.mark.slow  # a forward and backward pass of 61 layers, without storage: some ten seconds
def test_the_whole_page_is_current() -> None:
    stored = make_scaling_out.PAGE.read_text(encoding="utf-8")
    assert make_scaling_out.page() == stored, "run: python docs/make_scaling_out.py"
