"""CI runs every example, and each script says what to look at. ``examples/run.sh`` itself runs in ``.ci/run``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from test_docs import TOP

EXAMPLES = TOP / "examples"
SCRIPTS = sorted(p for p in EXAMPLES.rglob("*.py") if not p.relative_to(EXAMPLES).parts[0].startswith("moekit-"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_ci_runs_each_script(script: Path) -> None:
    name = script.relative_to(EXAMPLES).as_posix()
    assert f" {name}" in (EXAMPLES / "run.sh").read_text(encoding="utf-8")
    assert "examples/run.sh" in (TOP / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_each_script_says_what_to_look_at_and_how_long_it_takes(script: Path) -> None:
    if script.name not in ("notebook.py",) and script.parent.name != "lightning_cli":
        said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        said = " ".join(said.split())
        assert "Look at" in said and ("on one core" in said or "on a laptop" in said)


def test_the_scripts_need_only_what_the_extra_installs() -> None:
    extra = (TOP / "pyproject.toml").read_text(encoding="utf-8").split("\nexamples = [")[1].split("]\n")[0]
    package = {"sklearn": "scikit-learn", "hydra": "hydra-core", "optuna": "optuna", "jsonargparse": "jsonargparse"}
    needed = [line.split()[1] for line in (EXAMPLES / "run.sh").read_text().splitlines() if line.startswith("example ")]
    assert {package[name] for name in needed if name != "moekit"} == {
        name for name in package.values() if name in extra
    }
