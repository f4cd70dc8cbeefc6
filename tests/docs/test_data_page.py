"""The counts on ``docs/data.md`` are those of the catalogs that it names."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version

import pytest
from test_docs import TOP

from moekit_data.translations.pairs import keep, placeholders
from moekit_data.translations.reading import read_django

CATALOGS = "5.2.19"


@pytest.mark.slow  # reads all catalogs of Django: some seconds
def test_the_counts_of_translations_are_those_of_the_catalogs() -> None:
    pytest.importorskip("django")
    pytest.importorskip("polib")
    if version("django") != CATALOGS:
        pytest.skip(f"the page describes Django {CATALOGS}")
    page = " ".join((TOP / "docs" / "data.md").read_text(encoding="utf-8").split())
    read = list(read_django())
    every, short = keep(read, max_chars=10**9)[0], keep(read, max_chars=100)[0]
    by_language = Counter(pair.language for pair in short)
    asked = [pair for pair in every if placeholders(pair.source)]
    differ = sum(placeholders(pair.source) != placeholders(pair.target) for pair in asked)
    words = sum(len(pair.source.split()) for pair in short) / len(short)
    for said in (
        f"Django {CATALOGS} has",
        f"{len(every):,} pairs of {len({pair.source for pair in every})} English strings",
        f"into {len(by_language)} languages",
        f"{len(short):,} pairs of {len({pair.source for pair in short})} strings remain",
        f"{min(by_language.values())} to {max(by_language.values())} of them",
        f"{sum(count >= 500 for count in by_language.values())} languages have 500 or more",
        f"{words:.1f} words on average",
        f"({len(asked) / len(every):.0%} of all pairs)",
        f"differ in {differ} of {len(asked):,} pairs",
    ):
        assert said in page
