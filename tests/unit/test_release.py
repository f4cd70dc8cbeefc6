"""``.ci/release.py``: a release is prepared in one step, and nothing that is wrong is released."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
URL = "https://github.com/moekit/moekit"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = script()


def git(tree: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose version 0.2.0 is prepared and committed on main."""
    (tmp_path / "moekit").mkdir()
    (tmp_path / "moekit" / "__init__.py").write_text('"""Doc."""\n\n__version__ = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 0.1.0\ndate-released: 2026-01-01\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n")
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nSource = "{URL}"\n')
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "remote", "add", "origin", f"{URL}.git")
    release.prepare(tmp_path, "0.2.0", "2026-12-01")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "Release 0.2.0")
    return tmp_path


def test_a_prepared_release_states_its_version_everywhere_and_nothing_is_wrong(tree: Path) -> None:
    assert '__version__ = "0.2.0"' in (tree / "moekit" / "__init__.py").read_text()
    assert "version: 0.2.0\ndate-released: 2026-12-01\n" in (tree / "CITATION.cff").read_text()
    assert release.sections((tree / "CHANGELOG.md").read_text()) == {
        "Unreleased": "",
        "0.2.0 - 2026-12-01": "### Added\n\n- A thing.",
    }
    assert list(release.faults(tree)) == []
    git(tree, "tag", "v0.2.0")
    assert list(release.faults(tree)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "CITATION.cff",
            "version: 0.2.0",
            "version: 0.1.9",
            "version 0.1.9, moekit/__init__.py 0.2.0",
        ),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- More.\n", "has lines below '## Unreleased'"),
        ("CHANGELOG.md", "## Unreleased\n\n", "", "begins with '## 0.2.0 - 2026-12-01'"),
        ("CHANGELOG.md", "## 0.2.0", "## 0.1.9", "is '0.1.9 - 2026-12-01'; expected '0.2.0 - YYYY-MM-DD'"),
        ("CHANGELOG.md", "### Added\n\n- A thing.\n", "", "the section 0.2.0 - 2026-12-01 of CHANGELOG.md is empty"),
        ("pyproject.toml", "moekit/moekit", "else/where", "says that the source is at https://github.com/else/where"),
    ],
)
def test_what_is_wrong_is_said(tree: Path, file: str, old: str, new: str, said: str) -> None:
    text = (tree / file).read_text()
    assert old in text
    (tree / file).write_text(text.replace(old, new, 1))
    assert "files are changed or new" in "\n".join(release.faults(tree))
    git(tree, "commit", "-qam", "A mistake")
    (found,) = release.faults(tree)
    assert said in found


def test_another_branch_and_a_tag_of_another_commit_are_refused(tree: Path) -> None:
    git(tree, "tag", "v0.2.0")
    git(tree, "commit", "-q", "--allow-empty", "-m", "Later")
    git(tree, "switch", "-qc", "other")
    branch, tag = release.faults(tree)
    assert branch == "the branch is 'other', not main"
    assert tag == "the tag v0.2.0 is another commit: raise the version"


@pytest.mark.parametrize(("version", "said"), [("two", "two is not a version"), ("0.3.0", "has nothing below")])
def test_what_cannot_be_prepared_changes_nothing(tree: Path, version: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        release.prepare(tree, version, "2026-12-02")
    assert release.stated(tree) == "0.2.0"
