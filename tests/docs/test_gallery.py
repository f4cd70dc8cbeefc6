"""The gallery is what its generator makes of the current recipes, and has all of them; so is every result on a page."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest
from test_docs import FENCED, PAGES, TESTED

from moekit import load
from moekit.registry import current

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

import make_gallery  # noqa: E402

LANGUAGES = pytest.mark.parametrize("words", [make_gallery.ENGLISH, make_gallery.CHINESE], ids=["en", "zh"])
FIGURE = re.compile(r"(?<![\w.])(?:\d*\.\d\d+|\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)? ?%)")
"""A decimal with two or more places, a number with separators, a percentage."""


@LANGUAGES
def test_the_gallery_is_up_to_date(words: make_gallery.Words) -> None:
    stored = (DOCS / f"gallery{words.suffix}.md").read_text(encoding="utf-8")
    assert made_gallery(words.suffix) == stored, "run: python docs/make_gallery.py"


@pytest.mark.parametrize("page", make_gallery.FILLED, ids=lambda page: page.name)
def test_the_generated_blocks_of_a_page_have_the_figures_of_the_stored_runs(page: Path) -> None:
    stored = page.read_text(encoding="utf-8")
    words = make_gallery.CHINESE if page.name.endswith(".zh.md") else make_gallery.ENGLISH
    assert make_gallery.filled(stored, words) == stored, "run: python docs/make_gallery.py"
    blocks = [block[0] for block in make_gallery.BLOCK.finditer(stored)]
    assert all(re.search(r"\d", block) for block in blocks)
    assert stored.count("<!-- written by docs/make_gallery.py") == len(blocks) == (3 if "README" in page.name else 1)


def test_the_picture_of_experts_has_the_words_that_the_report_gave_it_wherever_it_is_shown() -> None:
    (words,) = re.findall(r'<img alt="(.*?)"', make_gallery.experts({}, make_gallery.ENGLISH))
    assert re.findall(r'alt="(8 kinds of text.*?)"', (DOCS / "seeing_experts.md").read_text("utf-8")) == [words]
    for theme in ("light", "dark"):
        svg = (DOCS / "images" / f"experts.{theme}.svg").read_text(encoding="utf-8")
        assert f"<dc:description>{words}</dc:description>" in svg


def test_readme_is_short_and_shows_python_early() -> None:
    text = re.sub(r"<!--.*?-->|<[^>]*>", "", (DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert len(words_of(text)) <= 750
    assert len(words_of(text.partition("```python")[0])) <= 250


def words_of(text: str) -> list[str]:
    """What a reader counts as a word: not the bars of tables."""
    return re.findall(r"\S*\w\S*", text)


def test_no_figure_of_a_result_is_typed_into_readme() -> None:
    for name in ("README.md", "README.zh.md"):
        text = (DOCS.parent / name).read_text(encoding="utf-8")
        for generated in (make_gallery.BLOCK, TESTED, FENCED):
            text = generated.sub("", text)
        assert not FIGURE.findall(re.sub(r"Python 3.*|torch 2.*|<[^>]*>", "", text)), name


@pytest.mark.parametrize("page", [p for p in PAGES if not p.name.startswith("gallery")], ids=lambda page: page.name)
def test_a_table_that_has_a_generator_is_written_by_it(page: Path) -> None:
    """Whatever has the header of a generated table is part of what the generator wrote."""
    text = make_gallery.BLOCK.sub("", page.read_text(encoding="utf-8"))
    typed = [header for header in tables(text) if header in generated_headers()]
    assert not typed, f"{page.name}: typed by hand: {typed}"


@pytest.mark.parametrize(
    ("line", "found"),
    [("2.207, dense 2.275", 2), ("better by 3.0%", 1), ("7,764 tests", 1), ("top-2 of 64, in 1991", 0), ("GPT-2.1", 0)],
)
def test_what_counts_as_a_typed_figure(line: str, found: int) -> None:
    assert len(FIGURE.findall(line)) == found


def tables(text: str) -> list[str]:
    """The header of each table."""
    return [match[1] for match in re.finditer(r"^(\|.*\|)\n\|[-| :]+\|$", text, re.MULTILINE)]


@functools.cache
def made_gallery(suffix: str) -> str:
    """The gallery in one language, made once for all tests."""
    return make_gallery.page(make_gallery.CHINESE if suffix else make_gallery.ENGLISH)


@functools.cache
def generated_headers() -> set[str]:
    """The headers of all tables that a generator writes, in both languages."""
    found = set()
    for words in (make_gallery.ENGLISH, make_gallery.CHINESE):
        made = [
            make(make_gallery.stored_results(), words)
            for name, make in make_gallery.BLOCKS.items()
            if name in words.texts
        ]
        found |= {header for text in [made_gallery(words.suffix), *made] for header in tables(text)}
    return found


def test_what_changed_since_a_recipe_was_trained_is_said_once() -> None:
    said = make_gallery.notes({"a": {"note": "before x"}, "b": {}, "c": {"note": "before x"}})
    assert said == "\n`a`, `c`: before x.\n"


def test_the_verdict_calls_a_tie_a_tie() -> None:
    def run(moe: float, dense: float) -> dict[str, object]:
        return {"curve": [[1, 9.0], [2, moe]], "dense_curve": [[1, 9.0], [2, dense]]}

    found = make_gallery.verdict({"a": run(1.9, 2.0), "b": run(2.004, 2.0), "c": run(1.99, 2.0), "d": run(2.1, 2.0)})
    assert found == (
        "\nAhead of their dense baselines at equal tokens: `a` (+5.0%). "
        "Tied (less than 1% apart): `b` (-0.2%), `c` (+0.5%). Behind: `d` (-5.0%).\n"
    )
    assert "Behind" not in make_gallery.verdict({"a": run(1.9, 2.0), "b": run(2.0, 2.0)})


def test_every_recipe_of_a_paper_is_in_the_gallery() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    names = [c.name for c in current().recipes if c.plugin == "papers" and not c.name.startswith("base/")]
    assert len(names) > 30
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_chinese_gallery_translates_what_every_trainable_recipe_says() -> None:
    names = {c.name for c in current().recipes if c.plugin == "papers" and "/" not in c.name and load(c.name).data}
    assert set(make_gallery.CHINESE.summaries) == set(make_gallery.CHINESE.claims) == names
    assert set(make_gallery.CHINESE.texts) <= set(make_gallery.ENGLISH.texts)


def test_every_paper_says_who_when_and_what() -> None:
    for component in current().recipes:
        paper = load(component.name).paper
        if component.plugin == "papers" and paper is not None:
            assert paper.title
            assert paper.authors
            assert 1990 < paper.year < 2100
            assert paper.arxiv or paper.where
            assert paper.claim or load(component.name).data is None, component.name


def test_every_paper_has_a_recipe_to_train() -> None:
    recipes = [load(c.name) for c in current().recipes if c.plugin == "papers"]
    titles = {recipe.paper.title for recipe in recipes if recipe.paper is not None}
    assert titles == {r.paper.title for r in recipes if r.paper is not None and r.data is not None}
    assert len(titles) == 10
