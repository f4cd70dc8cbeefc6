"""A package of every kind that ``moekit new`` writes works as written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import install_project

from moekit.cli import main
from moekit.registry import current
from moekit_testing.scaffold import templates

KINDS = list(templates(current()))


def run(folder: Path, *words: str) -> str:
    """The output of a command in the folder, with the package installed; it must exit with 0."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def package(kind: str, tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    assert main(["new", kind, f"my_{kind}", "--to", str(folder)]) == 0
    install_project(folder)
    return folder


@pytest.mark.slow  # .ci/packages does the same with a router
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_its_own_tests_and_its_recipe_trains(kind: str, package: Path) -> None:
    """``tests/test_recipe.py`` of the package trains two steps of its recipe."""
    name, of = f"my_{kind}", current().kinds.get(kind)
    assert f"{name}" in run(package, "moekit", "plugins")
    out = run(package, "pytest", "-W", "error", "-p", "no:cacheprovider", "-rA")
    if of is None:
        assert name in run(package, "moekit", "help")
        return
    assert "PASSED tests/test_recipe.py::test_the_recipe_trains_two_steps" in out
    assert f"PASSED tests/test_conformance.py::test_conformance[{kind}/{name}-check_description]" in out
    assert name in run(package, "moekit", "ls", of.plural)
    assert name in run(package, "moekit", "ls", "recipes")


@pytest.mark.slow
def test_new_packages_pass_ruff_and_mypy(tmp_path: Path) -> None:
    for n, kind in enumerate(templates(current())):
        folder = tmp_path / kind
        assert main(["new", kind, f"my_{kind}", "--to", str(folder)]) == 0
        for file in folder.rglob("*.py"):  # mypy's cache takes a file of the same name, size and time for the same
            os.utime(file, (n, n))
        run(folder, "ruff", "format", "--check", ".")
        run(folder, "ruff", "check", ".")
        assert "Success" in run(folder, "mypy", "--cache-dir", str(tmp_path / "cache"))
