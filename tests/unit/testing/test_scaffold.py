"""``moekit new``: what is written, that it is formatted whatever the name, and names that cannot be used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import fake_plugins
import pytest

from moekit.cli import main
from moekit.component import Kind
from moekit.registry import current, temporary
from moekit.spec.fields import Spec
from moekit_testing.scaffold import LONGEST, package, templates, write

Captured = pytest.CaptureFixture[str]


def test_there_is_a_template_for_every_kind_and_for_a_verb() -> None:
    assert set(templates(current())) == {*current().kinds, "verb"}


def test_the_package_has_code_oracle_tests_recipe_licence_and_ci(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "here"
    assert main(["new", "router", "my_router", "--to", str(folder)]) == 0
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        ".github/workflows/test.yml",
        "LICENSE",
        "README.md",
        "moekit_my_router/__init__.py",
        "moekit_my_router/module.py",
        "moekit_my_router/naive.py",
        "moekit_my_router/py.typed",
        "moekit_my_router/recipes/my_router.yaml",
        "moekit_my_router/spec.py",
        "pyproject.toml",
        "tests/test_conformance.py",
        "tests/test_my_router.py",
        "tests/test_recipe.py",
    }
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "moekit-my-router"
    assert project["dependencies"] == ["moekit>=0.1,<0.2"]
    assert project["entry-points"]["moekit"] == {"my_router": "moekit_my_router"}
    out = capsys.readouterr().out
    assert all(f"  {name}\n" in out for name in files)
    assert "pip install -e '.[test]'" in out and "moekit train my_router trainer.max_steps=2" in out
    readme = (folder / "README.md").read_text()
    assert (
        all(f"| `{name}` |" in readme for name in files if "py.typed" not in name)
        and "| `tests/test_recipe.py` |  |" not in readme
    )


def test_no_word_of_a_template_is_left_and_every_file_says_what_it_is(tmp_path: Path) -> None:
    for kind in templates(current()):
        made = package(current(), kind, f"my_{kind}", tmp_path / kind)
        for path in write(made, current()):
            text = (made.folder / path).read_text()
            assert "${{" in text or "$" not in text.replace("${data.", ""), path
        rows = [line for line in (made.folder / "README.md").read_text().splitlines() if line.startswith("| `")]
        assert rows and not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize("length", [2, LONGEST])
def test_packages_are_formatted_and_pass_ruff_whatever_the_length_of_the_name(tmp_path: Path, length: int) -> None:
    for number, kind in enumerate(templates(current())):
        name = f"{chr(ord('a') + number)}q_long_name_of_the_plugin"[:length]
        write(package(current(), kind, name, tmp_path / kind), current())
    for command in (["format", "--check"], ["check", "--output-format", "concise"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_plugin_offers_templates_of_its_own_kinds_in_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PaintSpec(Spec):
        kind = "paint"

    template = tmp_path / "acme_paints" / "templates" / "paint"
    (template / "PLUGIN").mkdir(parents=True)
    (template / "PLUGIN" / "module.py.in").write_text('NAME = "$name"\n')
    plugin = fake_plugins.module("acme_paints", kinds=[Kind(name="paint", spec=PaintSpec)])
    plugin.__path__ = [str(tmp_path / "acme_paints")]
    monkeypatch.setitem(sys.modules, "acme_paints", plugin)
    with temporary(plugin):
        assert main(["new", "paint", "oil", "--to", str(tmp_path / "oil")]) == 0
    assert (tmp_path / "oil" / "moekit_oil" / "module.py").read_text() == 'NAME = "oil"\n'
    assert "paint `oil`" in (tmp_path / "oil" / "README.md").read_text()


def test_the_list_names_every_template(capsys: Captured) -> None:
    assert main(["new", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(templates(current()))


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("ruoter", "mine", "no template is named 'ruoter'\n  did you mean 'router'?\n  list them: moekit new --list"),
        ("router", "MyRouter", "expected lower-case letters, digits and underscores; did you mean 'my_router'?"),
        ("router", "my-router", "did you mean 'my_router'?"),
        ("router", "2nd", "expected lower-case letters"),
        ("router", "class", "expected lower-case letters"),
        ("router", "x" * (LONGEST + 1), f"it has {LONGEST + 1} letters; expected 2 to {LONGEST}"),
        ("router", "x", "it has 1 letters; expected 2 to"),
        ("router", "tensor", "its class would be called Tensor, as one that it imports"),
        ("router", "router", "its class would be called Router, as one that it imports"),
        ("router", "routers", "a plugin or module 'moekit_routers' is installed already"),
        ("router", "topk", "it is that of router 'routers/topk' of moekit"),
        ("verb", "train", "it is that of verb 'moekit/train' of moekit"),
        ("router", "", "expected lower-case letters"),
    ],
)
def test_a_request_that_cannot_be_met_writes_nothing(
    tmp_path: Path, capsys: Captured, kind: str, name: str, said: str
) -> None:
    assert main(["new", kind, name, "--to", str(tmp_path / "new")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_plural_means_its_kind(tmp_path: Path) -> None:
    assert package(current(), "routers", "mine", tmp_path / "new").kind == "router"


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["new", "router", "mine", "--to", str(tmp_path)]) == 2
    assert "exists and is not empty\n  write elsewhere: --to DIR" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
