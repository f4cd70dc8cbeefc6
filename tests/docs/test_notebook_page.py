"""``docs/notebook.md`` has the ten cells of ``examples/notebook.py`` with their output, and they can be executed."""

from __future__ import annotations

import re
import sys

import pytest
from test_docs import TOP

sys.path.append(str(TOP / "docs"))

import make_notebook

CELLS = make_notebook.cells(make_notebook.NOTEBOOK.read_text(encoding="utf-8"))
OUTPUT = re.compile(r"\n```text\n.*?\n```\n|\n!\[[^\]]*\]\(images/notebook\.png\)\n", re.DOTALL)


def test_the_page_has_the_cells_of_the_notebook() -> None:
    page = make_notebook.PAGE.read_text(encoding="utf-8")
    assert OUTPUT.sub("", page) == make_notebook.markdown(CELLS, [[]] * len(CELLS), make_notebook.IMAGES), (
        "run: python docs/make_notebook.py"
    )
    assert sum(cell.is_code for cell in CELLS) == 10
    (picture,) = [cell.alt for cell in CELLS if cell.alt]
    assert f"![{picture}](images/notebook.png)" in page and (make_notebook.IMAGES / "notebook.png").is_file()
    assert len(re.findall("^```text$", page, re.MULTILINE)) == 9  # what every cell prints, but the picture's


@pytest.mark.slow
def test_the_notebook_can_be_executed_and_draws_its_picture(tmp_path: object) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    outputs = make_notebook.execute(CELLS)
    kinds = [{kind for each in out for kind in each.get("data", {})} for out in outputs]
    assert sum("image/png" in kind for kind in kinds) == 1
    assert not [each for out in outputs for each in out if each["output_type"] == "error"]
