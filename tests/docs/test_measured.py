"""Every measured table of the docs is what a benchmark stored, and no table of figures is typed by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import measured
import pytest
from test_docs import FENCED, PAGES, TOP

WRITTEN = re.compile(r"<!-- (?:written by|tested:|sizing) .*?<!-- /?(?:end|tested) -->\n", re.DOTALL)
"""A block that a generator fills, this or another."""

GENERATED = re.compile(r"^(gallery|components|commands|recipes|plugin_directory|lineage|ledger)\b")
"""Pages that a generator writes as a whole; tests of their own compare them."""

FACTS = {
    "README.md": ["recipe"],
    "README.zh.md": ["配方"],
    "benchmarks.md": ["name"],  # shapes
    "by_hand.md": ["step", "error", "logits around", "paper"],  # years, and what code on the page computes
    "by_hand.zh.md": ["步骤", "误差", "logits 的量级", "论文"],
    "future.md": ["model"],
    "future.zh.md": ["模型"],
}
"""Tables whose numbers are not measured: by page, the first word of the header."""

TABLE = re.compile(r"^\|(.*)\|\n\|[-| :]+\|\n((?:\|.*\|\n)+)", re.MULTILINE)
NUMBER = re.compile(r"[*≈<]*[-+]?(\d[\d,]*)?\.?\d")


def typed(text: str) -> list[str]:
    """The first word of the header of each table that has a column of two numbers or more, outside generated blocks."""
    found = []
    for head, body in TABLE.findall(FENCED.sub("", WRITTEN.sub("", text))):
        rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in body.splitlines()]
        columns = [[cell.strip() for cell in column if cell.strip()] for column in zip(*rows, strict=True)]
        if any(len(column) // 2 < sum(bool(NUMBER.match(cell)) for cell in column) > 1 for column in columns):
            found.append(head.strip(" |").split("|")[0].strip())
    return found


def test_every_block_is_what_was_stored() -> None:
    shown = []
    for page in measured.PAGES:
        text = page.read_text(encoding="utf-8")
        assert measured.filled(text) == text, f"{page.name}: run: python benchmarks/measured.py"
        for _, script, name, _ in measured.BLOCK.findall(text):
            assert (TOP / script).is_file()
            assert Path(script).name in measured.stored(name)["command"], f"another script measured {name}"
            shown.append(name)
    assert sorted(shown) == sorted(path.stem for path in measured.FOLDER.glob("*.json"))


@pytest.mark.parametrize("page", [p for p in PAGES if not GENERATED.match(p.name)], ids=lambda page: page.name)
def test_no_table_of_figures_is_typed(page: Path) -> None:
    found, facts = Counter(typed(page.read_text(encoding="utf-8"))), Counter(FACTS.get(page.name))
    assert found - facts == Counter(), "store them: benchmarks/measured.py"
    assert facts <= found, "no such table, or it has no numbers"


def test_what_counts_as_a_typed_table() -> None:
    table = "| a | ms |\n|---|---|\n| `x` | 1.5 (1.6) |\n| `y` | **.25** |\n| z | |\n"
    assert typed(table) == ["a"]
    assert typed(f"<!-- written by benchmarks/x.py: x -->\n{table}<!-- end -->\n") == []
    assert typed("| a | b |\n|---|---|\n| 3 | no number |\n| x | `1` |\n") == []


def test_a_page_shows_what_a_benchmark_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n\n<!-- written by benchmarks/x.py: tiny -->\n| typed |\n<!-- end -->\n\nbelow\n")
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    monkeypatch.setattr(measured, "PAGES", (page,))
    columns = {"name": "`{}`", "ms, both": "{:.0f}, {:.0f}", "÷ dense": measured.RATIO}
    rows = [["a", [1.6, 2.23456789], {"best": 1.0, "median": 1.25}], ["b", None, {"best": 0.5, "median": 2 / 3}]]
    made = measured.table(columns, rows, words="The least is {least:.1%}.", values={"least": 0.5}, command="x.py")
    measured.publish("tiny", made, docs=False)
    assert "typed" in page.read_text(encoding="utf-8") and not measured.FOLDER.exists()
    measured.publish("tiny", made, docs=True)
    assert json.loads((measured.FOLDER / "tiny.json").read_text("utf-8"))["rows"][0][1] == [1.6, 2.2346]
    text = page.read_text(encoding="utf-8")
    where = (
        f"{made['machine']}, {made['device']}; torch {made['torch']}, Python {made['python']}, moekit {made['moekit']}"
    )
    assert " ".join(text.split()) == " ".join(
        f"above <!-- written by benchmarks/x.py: tiny --> | name | ms, both | ÷ dense | |---|---|---| "
        f"| `a` | 2, 2 | 1.00 (1.25) | | `b` | | 0.50 (0.67) | The least is 50.0%. "
        f"Measured {made['date']} by `x.py`: {where}. <!-- end --> below".split()
    )
    assert measured.filled(text) == text != measured.filled(text.replace("0.50", "0.49").replace("below", ""))
