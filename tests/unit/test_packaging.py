"""What pyproject.toml says of the packages agrees with the tree. ``.ci/packages`` builds, installs and tries them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, PLUGINS = PYPROJECT["project"], sorted(path.parent.name for path in TOP.glob("plugins/*/__init__.py"))


def as_an_index_shows(text: str) -> str:
    """A README after the substitutions of the build."""
    for each in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"].replace("$HFPR_VERSION", "1.2"), text)
    return text


def test_every_plugin_has_an_entry_point_types_and_a_place_in_what_mypy_reads() -> None:
    assert sorted(PROJECT["entry-points"]["moekit"].values()) == PLUGINS
    assert [name for name in PLUGINS if not (TOP / "plugins" / name / "py.typed").is_file()] == []
    assert {*PYPROJECT["tool"]["mypy"]["packages"]} == {"moekit", *PLUGINS} - {"moekit_papers"}  # recipes alone


def test_the_pythons_that_are_claimed_are_those_that_passed_the_suite() -> None:
    tested = {cell["python"].rpartition(".")[0] for cell in json.loads((TOP / "moekit" / "tested.json").read_text())}
    claimed = {found[1] for each in PROJECT["classifiers"] if (found := re.fullmatch(r".*Python :: (3\.\d+)", each))}
    assert claimed == tested


def test_every_licence_in_the_tree_is_named_in_the_notice_and_goes_into_the_wheel() -> None:
    found = {path.relative_to(TOP).as_posix() for path in TOP.glob("plugins/**/*.LICENSE")}
    assert found and {"LICENSE", "NOTICE", *found} == {*PROJECT["license-files"]}
    notice = (TOP / "NOTICE").read_text()
    assert [name for name in found if Path(name).name not in notice] == []
    bundled = re.findall(r"^(plugins/\S+)$", notice, re.MULTILINE)
    assert len(bundled) == len(found) and all((TOP / name).is_file() for name in bundled)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](docs/specs.md#x)", "[a](https://github.com/moekit/moekit/blob/v1.2/docs/specs.md#x)"),
        ("![a](docs/a.png)", "![a](https://raw.githubusercontent.com/moekit/moekit/v1.2/docs/a.png)"),
        ('<img src="docs/a.svg">', '<img src="https://raw.githubusercontent.com/moekit/moekit/v1.2/docs/a.svg">'),
        ("[a](#here), [b](https://x.org/y)", "[a](#here), [b](https://x.org/y)"),
        ("pip install -e . && moekit train", "pip install moekit && moekit train"),
        ("`pip install -e '.[translation]'`", '`pip install "moekit[translation]"`'),
        ("pip install -e '.[test]' && pytest   # all\n", ""),
    ],
)
def test_an_index_shows_readme_with_absolute_links_and_the_package_by_name(written: str, shown: str) -> None:
    assert as_an_index_shows(written) == shown


def test_no_relative_link_of_readme_is_left() -> None:
    shown = as_an_index_shows((TOP / "README.md").read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", shown) + re.findall(r"\b(?:src|srcset|href)=\"([^\"]+)\"", shown)
    assert links and [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "install -e" not in shown
