"""The drawings of the docs come from ``docs/make_figures.py``, and every picture on a page says what it shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, TOP, prose

DOCS = TOP / "docs"
sys.path.append(str(DOCS))

import make_figures  # noqa: E402

PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)|<img alt=\"([^\"]*)\" src=\"([^\"]+)\"")


def test_every_drawing_is_stored_for_light_and_dark_and_plotted_alike_each_time(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in make_figures.draw(tmp_path)}
    assert list(first) == [
        f"{name}{dark}.svg" for name in ("layer", "dispatch", "forms", "spec") for dark in ("", ".dark")
    ]
    assert {path.name: path.read_bytes() for path in make_figures.draw(tmp_path)} == first
    for name, data in first.items():
        assert (make_figures.IMAGES / name).is_file(), "run: python docs/make_figures.py"
        assert data.count(b"<path") > 50


def test_the_plots_that_the_page_saves_are_those_that_it_shows() -> None:
    text = make_figures.PAGE.read_text(encoding="utf-8")
    saved = set(re.findall(r"figure\.savefig\(\"([^\"]+)\"", text))
    shown = {path.removeprefix("images/") for path in re.findall(r"\]\((images/by_hand[^)]*)\)", text)}
    assert saved == shown != set()
    assert all((make_figures.IMAGES / name).is_file() for name in saved)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_has_words_in_the_language_of_its_page(page: Path) -> None:
    for words, _, html_words, _ in PICTURE.findall(prose(page)):
        said = words or html_words
        assert len(said) > 15, f"{page.name}: a picture without alternative text"
        assert bool(re.search(r"[\u4e00-\u9fff]", said)) == page.name.endswith(".zh.md"), f"{page.name}: {said}"
