"""Executes ``examples/notebook.py`` and writes ``docs/notebook.md``: its cells, what they print, and its picture.

pip install -e '.[examples]' && python docs/make_notebook.py
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
NOTEBOOK, PAGE, IMAGES = DOCS.parent / "examples" / "notebook.py", DOCS / "notebook.md", DOCS / "images"


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: its text, whether it is code, and the alternative text of its picture."""

    text: str
    is_code: bool
    alt: str = ""


def cells(source: str) -> list[Cell]:
    """The cells of a notebook in jupytext's percent format."""
    found = []
    for part in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        if "[markdown]" in head:
            found.append(
                Cell("\n".join(line.removeprefix("#").removeprefix(" ") for line in text.strip().split("\n")), False)
            )
        else:
            alt = re.search(r'alt="([^"]*)"', head)
            found.append(Cell(text.strip(), True, alt[1] if alt else ""))
    return found


def execute(page: Sequence[Cell]) -> list[list[dict[str, Any]]]:
    """What each cell printed, returned and drew, as Jupyter has it."""
    import nbformat
    from nbclient import NotebookClient

    make = {True: nbformat.v4.new_code_cell, False: nbformat.v4.new_markdown_cell}
    notebook = nbformat.v4.new_notebook(cells=[make[cell.is_code](cell.text) for cell in page])
    inline = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # a test's would draw nothing
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=inline)
    return [cell.get("outputs", []) for cell in notebook.cells]


def markdown(page: Sequence[Cell], outputs: Sequence[Sequence[dict[str, Any]]], images: Path) -> str:
    """The page; pictures are written below ``images``.

    Raises:
        ValueError: a picture has no alternative text.
    """
    parts = []
    for cell, out in zip(page, outputs, strict=True):
        parts.append(f"```python\n{cell.text}\n```" if cell.is_code else cell.text)
        printed = "".join(each["text"] for each in out if each.get("name") == "stdout")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for each in out:
            data = each.get("data", {})
            if "image/png" in data:
                if not cell.alt:
                    raise ValueError(
                        f"a picture without alternative text; expected '# %% alt=\"...\"' before\n{cell.text}"
                    )
                (images / "notebook.png").write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![{cell.alt}]({images.name}/notebook.png)")
            elif data:
                parts.append(f"```text\n{data['text/plain']}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Executes the notebook and writes the page and its picture."""
    page = cells(NOTEBOOK.read_text(encoding="utf-8"))
    PAGE.write_text(markdown(page, execute(page), IMAGES), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
