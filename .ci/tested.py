"""What the test suite was run on: recorded from a run, written into a page and the package, and checked by CI.

    python .ci/tested.py record report.xml cell.json     # in the environment that was tested
    python .ci/tested.py write cell.json ...             # into moekit/tested.json and docs/install.md
    python .ci/tested.py check cell.json ...             # fails where one of them claims something else

A cell is one environment: its Python, the versions of the packages below, and how many tests passed and failed.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTED, PAGE = ROOT / "moekit" / "tested.json", ROOT / "docs" / "install.md"
PACKAGES = ("torch", "lightning", "omegaconf", "pluggy", "numpy", "triton")
BLOCK = re.compile(r"(<!-- tested: .*? -->\n).*?(<!-- /tested -->)", re.DOTALL)
Cell = dict[str, Any]


def record(report: Path) -> Cell:
    """The cell of this environment, with the counts of a JUnit report of pytest."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failed, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    cell: Cell = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            cell[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            cell[package] = None
    return {**cell, "passed": total - failed - skipped, "failed": failed}


def key(cell: Cell) -> tuple[tuple[int, ...], ...]:
    """Python and torch by minor version: what a row of the table stands for."""
    return tuple(tuple(map(int, cell[name].split(".")[:2])) for name in ("python", "torch"))


def table(cells: list[Cell]) -> str:
    """The page's table."""
    names = ("python", *PACKAGES)
    rows = [[cell[name] or "" for name in names] + [f"{cell['passed']:,}"] for cell in cells]
    lines = [["Python", *PACKAGES, "tests passed"], ["---"] * (len(names) + 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write(new: list[Cell]) -> None:
    """Replaces the cells of the same Python and torch, and the page's table."""
    known = json.loads(TESTED.read_text(encoding="utf-8")) if TESTED.is_file() else []
    by_key = {key(cell): cell for cell in [*known, *new]}
    cells = [by_key[each] for each in sorted(by_key)]
    rows = ",\n".join(f"  {json.dumps(cell)}" for cell in cells)
    TESTED.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda match: match[1] + table(cells) + match[2], text), encoding="utf-8")


def check(new: list[Cell]) -> str:
    """What is wrong: an environment that was just tested and is not in the table; a table that is not the file's."""
    cells = json.loads(TESTED.read_text(encoding="utf-8"))
    missing = [cell for cell in new if key(cell) not in {key(each) for each in cells}]
    block = BLOCK.search(PAGE.read_text(encoding="utf-8"))
    faults = [f"Python {c['python']} with torch {c['torch']} is not in moekit/tested.json" for c in missing]
    if block is None or block[0] != block[1] + table(cells) + block[2]:
        faults.append("the table of docs/install.md is not that of moekit/tested.json")
    faults += [f"Python {c['python']} with torch {c['torch']}: {c['failed']} tests failed" for c in new if c["failed"]]
    return "\n".join(faults)


def main(verb: str, *paths: str) -> str | None:
    """Runs one of the three; what it returns is an error for ``sys.exit``."""
    if verb == "record":
        report, out = map(Path, paths)
        out.write_text(json.dumps(record(report)), encoding="utf-8")
        print(out.read_text(encoding="utf-8"))
        return None
    cells = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    if verb == "write":
        write(cells)
        return None
    return check(cells) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
