"""The ledger: what is written about a paper, and the page that is generated from it."""

from __future__ import annotations

import json
from pathlib import Path

import fake_study
import pytest

from moekit import load
from moekit.errors import MoekitError
from moekit.training.module import LitMoE
from moekit_reproduce import ledger
from moekit_reproduce.engine import Engine, Progress, by_seed
from moekit_reproduce.papers import jacobs1991
from moekit_reproduce.papers.switch import Switch
from moekit_reproduce.plot import draw
from moekit_reproduce.store import Store

DOCS = Path(__file__).parents[3] / "docs"
ABOUT = {"quick": False, "machine": "a machine", "versions": {"torch": "2"}, "pictures": ["images/a.png"]}


@pytest.fixture
def row(tmp_path: Path) -> dict[str, object]:
    study = fake_study.study()
    quiet = Progress(step=lambda words: None, done=lambda line, kept: None)
    found = Engine(study, Switch(seeds=3), Store(tmp_path / "store"), quiet).run()
    assert draw(study, found, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    return ledger.row_of("a", study, found, by_seed(found), command="moekit reproduce a", about_run=ABOUT)


def test_a_row_has_the_claim_the_papers_figure_ours_and_the_verdict(row: dict[str, object], tmp_path: Path) -> None:
    page = ledger.write(tmp_path, row).read_text()
    assert "| b is better | 1 against 2 (table 1) | a − b: 0.100 (0.100 to 0.100) | 0.05 | **holds** |" in page
    assert "| a | 10 of 5, 10, 20, 40 | 0.8000 ± 0.1000 | 24 | 24 | 24 |" in page
    assert "`moekit reproduce a`: 3 seeds;" in page and "a machine; torch 2." in page
    assert "![What was measured for a](images/a.png)" in page
    assert "| Author 1999: A title | 1 |  |  |  |" in page
    assert json.loads((tmp_path / "ledger" / "a.json").read_text())["claims"][0]["values"] == pytest.approx([0.1] * 3)


def test_the_page_is_generated_from_the_json_of_all_papers_oldest_first(row: dict[str, object], tmp_path: Path) -> None:
    ledger.write(tmp_path, row)
    page = ledger.write(tmp_path, {**row, "name": "b", "title": "Earlier 1991: Another"}).read_text()
    assert page == ledger.page_of(ledger.rows_in(tmp_path))
    assert page.index("## Earlier 1991: Another") < page.index("## Author 1999: A title")


def test_the_quick_form_says_that_it_says_nothing(row: dict[str, object]) -> None:
    assert "says nothing about the paper" in ledger.page_of([{**row, "quick": True}])
    assert "says nothing about the paper" not in ledger.page_of([row])


def test_a_damaged_json_is_reported_with_what_to_do(row: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "old.json").write_text("{")
    with pytest.raises(MoekitError, match=r"old\.json is damaged.*\n  delete it, and run moekit reproduce old"):
        ledger.write(tmp_path, row)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.5, "1234"),
        (0.12345, "0.123"),
        (-0.00123456, "-0.00123"),
        ("inf", "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_three_digits(value: object, text: str) -> None:
    assert ledger.number(value) == text


def test_the_page_in_docs_is_what_the_command_generates() -> None:
    rows = ledger.rows_in(DOCS)
    assert rows
    again = 'python -c \'from moekit_reproduce import ledger as l; from pathlib import Path as P; d = P("docs"); '
    again += "l.write(d, l.rows_in(d)[0])' generates it from the JSON files"
    assert (DOCS / "ledger.md").read_text() == ledger.page_of(rows), again
    for row in rows:
        assert not row["quick"] and row["seeds"] >= 3
        assert all((DOCS / picture).is_file() for picture in row["pictures"])


@pytest.mark.parametrize(("arm", "has_experts"), [("4 experts", True), ("net of 6", False)])
def test_a_net_of_1991_has_no_number_of_active_experts(arm: str, has_experts: bool) -> None:
    (found,) = [each for each in jacobs1991.study(jacobs1991.Jacobs1991()).arms if each.name == arm]
    module = LitMoE(load(list(found.recipe)))
    values = jacobs1991.probe(module, module.prepare())
    assert ("active" in values) is has_experts
    assert ledger.spread([values["active"]] if has_experts else []) == ("4.0000 ± 0.0000" if has_experts else "")
