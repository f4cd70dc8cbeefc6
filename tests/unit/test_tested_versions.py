"""``.ci/tested.py`` records the versions that passed the suite, for a page and ``moekit --version --verbose``."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REPORT = (
    '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/>'
    '<testsuite tests="3" failures="0" errors="0" skipped="0"/></testsuites>'
)


@pytest.fixture
def tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a page and a table in a temporary folder."""
    spec = importlib.util.spec_from_file_location("tested", ROOT / ".ci" / "tested.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "install.md").write_text("before\n<!-- tested: how -->\nold\n<!-- /tested -->\nafter\n")
    monkeypatch.setattr(module, "PAGE", tmp_path / "install.md")
    monkeypatch.setattr(module, "TESTED", tmp_path / "tested.json")
    return module


def cell(python: str, torch: str, failed: int = 0) -> dict[str, Any]:
    return dict.fromkeys(("lightning", "omegaconf", "pluggy", "numpy", "triton"), "1") | {
        "python": python, "torch": torch, "passed": 1234, "failed": failed,
    }  # fmt: skip


def test_a_recorded_run_replaces_that_of_the_same_minor_versions(tested: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    tested.main("record", str(tmp_path / "report.xml"), str(tmp_path / "cell.json"))
    found = json.loads((tmp_path / "cell.json").read_text())
    assert (found["python"], found["passed"], found["failed"]) == (platform.python_version(), 8, 2)
    tested.write([cell("3.12.1", "2.15.0"), cell("3.9.1", "2.15.0")])
    tested.write([cell("3.12.4", "2.15.1")])
    assert [c["python"] for c in json.loads(tested.TESTED.read_text())] == ["3.9.1", "3.12.4"]
    assert "| 3.12.4 | 2.15.1 | 1 | 1 | 1 | 1 | 1 | 1,234 |\n<!-- /tested -->\nafter\n" in tested.PAGE.read_text()


def test_a_check_names_missing_versions_failures_and_an_outdated_readme(tested: ModuleType) -> None:
    tested.write([cell("3.12.1", "2.15.0")])
    assert tested.check([cell("3.12.7", "2.15.3")]) == ""
    tested.PAGE.write_text(tested.PAGE.read_text().replace("1,234", "9,999"))
    assert tested.check([cell("3.13.0", "2.15.0", failed=3)]).splitlines() == [
        "Python 3.13.0 with torch 2.15.0 is not in moekit/tested.json",
        "the table of docs/install.md is not that of moekit/tested.json",
        "Python 3.13.0 with torch 2.15.0: 3 tests failed",
    ]


def test_the_page_on_installation_shows_the_table_of_the_package(
    tested: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "PAGE", ROOT / "docs" / "install.md")
    monkeypatch.setattr(tested, "TESTED", ROOT / "moekit" / "tested.json")
    cells = json.loads(tested.TESTED.read_text(encoding="utf-8"))
    assert tested.check(cells) == ""
    assert all(c["passed"] > 1000 and c["failed"] == 0 for c in cells)
