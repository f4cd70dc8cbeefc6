"""Every code block of README.md, CONTRIBUTING.md and docs/*.md runs, or is valid in its format.

The blocks of a page run in order, in one folder of its own. A translation has the same blocks (``test_languages.py``).

- ``python`` runs; the page's later blocks see its names.
- ``console``: every line that begins with ``$ moekit`` runs in this process and must exit with 0.
- ``yaml`` must be a valid recipe; ``yaml fragment`` must be YAML.
- ``toml`` must be TOML.
- A block whose first line is ``# some.file`` is written to that file. A ``test_*.py`` runs as tests; the entry points
  of a ``pyproject.toml`` are installed; other Python can be imported by later blocks.
- ``text``, ``math`` and ``bash`` are not run.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from fake_plugins import install_project

from moekit import __version__, hookspecs, load, registry
from moekit.cli import main
from moekit.cli.verbs import find, parser_of
from moekit.plugin import HOOKS
from moekit.registry import current
from moekit.spec import to_plain, validate
from moekit_testing.checks.router import check_padding_nan

TOP = Path(__file__).parents[2]
PAGES = [TOP / "README.md", TOP / "README.zh.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md"))]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TESTED = re.compile(r"<!-- tested: .*?<!-- /tested -->\n", re.DOTALL)  # versions, written by CI into README alone
LANGUAGES = {"python", "console", "yaml", "yaml fragment", "toml", "text", "math", "bash"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line, language and text."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that it shows, or ``""``."""
        named = re.match(r"# ([\w-]+\.(?:py|toml|yaml))\n", self.text)
        return named[1] if named else ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(text[: m.start()].count("\n") + 2, m[1].strip(), m[2]) for m in FENCED.finditer(text)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, on the path; modules imported from it are unloaded afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_current", None)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", [p for p in PAGES if not p.name.endswith(".zh.md")], ids=lambda page: page.name)
def test_every_code_block_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: say what the block is: {', '.join(sorted(LANGUAGES))}"
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
            importlib.invalidate_caches()
        if block.file == "pyproject.toml":
            install_project(folder)
            importlib.invalidate_caches()
            monkeypatch.setattr(registry, "_current", None)
        elif block.file.startswith("test_"):
            run_checks(block.file.removesuffix(".py"))
        elif block.language == "python" and not block.file:
            source = "\n" * (block.line - 1) + block.text
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(source, str(page), "exec", dont_inherit=True), vars(module))
        elif block.language == "console":
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    assert line.startswith("$ moekit "), f"{where}: only moekit is run here"
                    assert main(shlex.split(line)[2:]) == 0, f"{where}: {line}"
        elif block.language == "yaml":
            path = folder / (block.file or "block.yaml")
            path.write_text(block.text, encoding="utf-8")
            validate(path)
        elif block.language == "yaml fragment":
            yaml.safe_load(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


def run_checks(module: str) -> None:
    """Runs a file of conformance tests as pytest does."""
    tests = [value for name, value in vars(importlib.import_module(module)).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        (mark,) = test.pytestmark
        for case in mark.args[1]:
            test(case.values[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_names_an_existing_file(page: Path) -> None:
    found = [*re.findall(r"\]\(([^)\s]+)\)", prose(page)), *re.findall(r"\bsrc(?:set)?=\"([^\"]+)\"", prose(page))]
    targets = [target for target in found if not target.startswith(("http://", "https://", "#"))]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not missing, f"{page.name} links to {missing}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to the headings of a page; a repeated heading has a number."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        name = re.sub(r"\]\([^)]*\)", "", heading).lower()
        name = re.sub(r"[^\w\- ]", "", name).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
    return {f"{name}-{i}" if i else name for name, count in found.items() for i in range(count + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_that_a_page_links_to_is_a_heading(page: Path) -> None:
    links = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+#[^)\s]+)\)", prose(page))]
    here = [(page.parent / path if path else page, anchor) for path, _, anchor in links if not path.startswith("http")]
    dead = [f"{target.name}#{anchor}" for target, anchor in here if anchor not in anchors(target)]
    assert not dead, f"{page.name} links to {dead}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_in_backticks_exists(page: Path) -> None:
    paths = re.findall(r"`((?:moekit|plugins|tests|docs|benchmarks|examples)/[\w./-]*)`", prose(page))
    missing = [path for path in paths if not (TOP / path).exists()]
    assert not missing, f"{page.name} names {missing}"


def test_every_file_in_the_tree_of_packages_exists() -> None:
    (tree,) = (b.text for b in blocks(TOP / "docs" / "architecture.md") if b.text.startswith("moekit/\n"))
    package, names = "", []
    for line in tree.splitlines()[1:-1]:
        indent, entries = re.match(r"( *)((?:[\w]+(?:\.py|/) ?)+)", line).groups()  # type: ignore[union-attr]
        names += [f"moekit/{package if len(indent) == 4 else ''}{entry}" for entry in entries.split()]
        package = entries.split()[-1] if len(indent) == 2 else package
    assert len(names) > 30 and not [name for name in names if not (TOP / name).exists()]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_first_screen_shows_the_command_to_train_and_the_command_to_test(name: str) -> None:
    first = "\n".join((TOP / name).read_text(encoding="utf-8").splitlines()[:20])
    commands = [re.sub(r"\s+#.*$", "", line).strip() for line in first.splitlines()]
    assert "pip install -e . && moekit train deepseek_v3" in commands
    assert "pip install -e '.[test]' && pytest" in commands


def test_the_failure_on_the_plugin_page_is_the_docstring_of_its_check() -> None:
    page = (TOP / "docs" / "writing_a_plugin.md").read_text(encoding="utf-8")
    assert "fails check_padding_nan" in page
    for line in inspect.cleandoc(check_padding_nan.__doc__ or "").splitlines():
        assert line in page


def test_the_plugin_page_names_every_kind_and_capability() -> None:
    page = (TOP / "docs" / "writing_a_plugin.md").read_text(encoding="utf-8")
    for kind, base in ((kind.name, kind.spec_class) for kind in current().kinds.values()):
        assert f"| `{kind}` | `{base.__name__}` |" in page, f"no row for the kind {kind}"
        if kind in ("router", "dispatcher", "balancer"):
            options = {field.name for field in dataclasses.fields(base)}
            claims = {c for c in vars(base).get("__annotations__", {}) if c != "kind"} - options
            for claim in claims:
                assert f"`{base.__name__}.{claim}`" in page, f"no row for the claim {base.__name__}.{claim}"


def test_the_page_of_hooks_has_each_with_its_arguments_and_what_hookspecs_says_of_it() -> None:
    page = (TOP / "docs" / "hooks.md").read_text(encoding="utf-8")
    quoted = " ".join(word for line in page.splitlines() if line.startswith(">") for word in line.split()[1:])
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    specs = {name: getattr(hookspecs, name) for name in HOOKS}
    assert headings == [f"{name}({', '.join(inspect.signature(spec).parameters)})" for name, spec in specs.items()]
    for name, spec in specs.items():
        assert " ".join((spec.__doc__ or "").split()) in quoted, f"{name} is described otherwise in hookspecs.py"
        section = page.split(f"### `{name}(")[1].split("\n### ")[0]
        assert f"def {name}(" in section, f"no example of {name}"


def test_every_key_of_the_troubleshooting_page_loads_in_its_recipe() -> None:
    page = (TOP / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert len(rows) > 40
    for override, recipe in rows:
        load(recipe, [override])


def test_the_page_on_citing_has_the_version_of_the_package() -> None:
    assert f"version = {{{__version__}}}" in (TOP / "docs" / "cite.md").read_text(encoding="utf-8")
    assert f"version: {__version__}\n" in (TOP / "CITATION.cff").read_text(encoding="utf-8")


def test_every_option_that_replaces_one_of_another_library_exists() -> None:
    page = TOP / "docs" / "migration.md"
    trees = [to_plain(load(name)) for name in ("deepseek_v3", "switch")]
    paths = re.findall(r"`((?:model|trainer)(?:\.\w+)+)`", prose(page))
    assert len(paths) > 30
    for path in paths:
        assert any(has_path(tree, path.split(".")) for tree in trees), path


def has_path(tree: object, path: list[str]) -> bool:
    """Whether nested dicts have a path."""
    return not path or (isinstance(tree, dict) and path[0] in tree and has_path(tree[path[0]], path[1:]))


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of moekit in the ``bash`` blocks of a page, which are not run."""
    for block in blocks(page):
        if block.language == "bash" and not block.text.startswith("#!"):
            for line in block.text.replace("\\\n", " ").splitlines():
                for command in re.split(r" (?:&&|\|) ", line):
                    words = shlex.split(command, comments=True)
                    if words[:1] == ["moekit"]:
                        yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_not_run_has_valid_arguments(page: Path) -> None:
    recipes = {recipe.name for recipe in current().recipes}
    for verb, *argv in commands(page):
        if verb.startswith("-"):
            continue
        parser_of(find(verb)).parse_intermixed_args(argv)  # raises MoekitError
        if verb == "train" and argv and argv[0] in recipes:
            load(argv[0], [word for word in argv[1:] if re.match(r"[\w.]+=", word)])
