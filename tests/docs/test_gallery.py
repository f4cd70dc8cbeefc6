"""The gallery is what its generator makes of the current recipes, and has all of them."""

from __future__ import annotations

import sys
from pathlib import Path

from moekit import load
from moekit.registry import current

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

import make_gallery  # noqa: E402


def test_the_gallery_is_up_to_date() -> None:
    stored = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert make_gallery.page() == stored, "run: python docs/make_gallery.py"


def test_the_data_pages_figures_are_those_of_the_stored_run() -> None:
    stored = (DOCS / "data.md").read_text(encoding="utf-8")
    assert make_gallery.data_page(stored) == stored, "run: python docs/make_gallery.py"
    assert stored.count(make_gallery.BEGIN) == 1 and "BLEU" in stored.partition(make_gallery.BEGIN)[2]


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
