"""Every test here has a terminal of 120 columns; ``use`` sets the plugins, ``recipe`` is a file with a small recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_plugins import KINDS

from moekit import registry
from moekit.plugin import Plugin
from moekit.registry import Registry


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("MOEKIT_DEBUG", raising=False)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``use(plugin, ...)`` makes these the only plugins."""

    def only(*plugins: Plugin, disabled: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(registry, "_current", Registry([KINDS, *plugins], disabled=disabled))

    return only


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A file with a recipe of first-party components."""
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
