"""Every test here sees only the fake plugins, unless it takes the fixture ``real_plugins``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_plugins import KINDS
from spec_fakes import ACME, BROKEN, SMALL, base_plugin

from moekit import registry
from moekit.component import recipes_in
from moekit.plugin import Plugin
from moekit.registry import Registry


@pytest.fixture(autouse=True)
def _only_fakes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "real_plugins" in request.fixturenames:
        monkeypatch.setattr(registry, "_current", None)
        return
    folder = tmp_path / "recipes"
    (folder / "more").mkdir(parents=True)
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    (folder / "more" / "tiny.yaml").write_text("extends: small\nmodel: {width: 4}\n", encoding="utf-8")
    monkeypatch.setattr(registry, "_current", Registry([KINDS, base_plugin(list(recipes_in(folder))), BROKEN]))


@pytest.fixture
def real_plugins() -> None:
    """For tests of the recipes that ship."""


@pytest.fixture
def with_acme(_only_fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds a plugin that offers a second router called ``pick``."""
    plugins: tuple[Plugin, ...] = registry.current().plugins
    monkeypatch.setattr(registry, "_current", Registry([*plugins, ACME]))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a YAML file into the working directory and gives its name."""

    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    return write_file
