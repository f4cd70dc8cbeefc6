"""Every test here has a terminal of 120 columns; ``use`` chooses the plugins, ``recipe`` is a small file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moekit import registry
from moekit.plugin import Plugin
from moekit.registry import Registry


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("MOEKIT_DEBUG", raising=False)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """``use(plugin, ...)`` makes these the only plugins."""

    def only(*plugins: Plugin, disabled: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(registry, "_current", Registry(plugins, disabled=disabled))

    yield only


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of first-party parts, in a file."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# Mine: a test\n"
        "schema: 1\n"
        "summary: a test\n"
        "paper: {title: On Tests, authors: Me, year: 2025, total: 24, active: 14, reading: both, claim: it works}\n"
        "model:\n"
        "  use: mixture\n"
        "  inputs: 2\n"
        "  outputs: 1\n"
        "  moe:\n"
        "    router: {use: dense}\n"
        "    experts: {use: linear, count: 4}\n"
        "    dispatcher: {use: soft}\n"
    )
    return path
