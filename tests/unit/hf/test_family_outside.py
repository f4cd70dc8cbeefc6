"""A family that moekit does not have is one file of another package; it is found, checked, imported and exported."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest
from fake_plugins import install_project

from moekit import registry
from moekit_hf import peer
from moekit_hf.importing import inspect
from moekit_testing.cases import cases_of
from moekit_testing.running import checks_for

EXAMPLE = Path(__file__).parents[3] / "examples" / "moekit-flex-olmo"
SOURCE = EXAMPLE / "src" / "moekit_flex_olmo.py"
LONGEST = 80


def test_the_example_is_one_short_file() -> None:
    lines = len(SOURCE.read_text().splitlines())
    assert lines <= LONGEST
    assert f"file of {lines} lines" in " ".join((EXAMPLE.parents[1] / "docs" / "hugging_face.md").read_text().split())
    assert [path.name for path in EXAMPLE.rglob("*.py") if "tests" not in path.parts] == [SOURCE.name]


def test_the_example_installed_as_a_package_meets_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    shutil.copy(SOURCE, tmp_path)
    install_project(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_current", None)
    importlib.invalidate_caches()
    try:
        found = registry.current().get("format", "flex_olmo/flex-olmo")
        family = found.spec_class()
        with peer.saved(peer.make(family, family.tiny()[0])) as folder:
            assert inspect(folder).name in ("flex-olmo", "flex_olmo/flex-olmo")
        names = []
        for case in cases_of([found], {}):
            for check in checks_for(case):
                check()
                names.append(check.name)
        assert {"check_same_function", "check_same_weights_back", "check_same_text"} <= set(names)
    finally:
        sys.modules.pop("moekit_flex_olmo", None)
