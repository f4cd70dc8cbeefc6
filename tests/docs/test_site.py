"""The site has every page, in both languages, and its links lead somewhere. ``.ci/run`` builds it, strictly."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, TOP

DOCS = TOP / "docs"
sys.path.append(str(DOCS))

import make_site  # noqa: E402

MADE = make_site.sources()


def test_every_page_of_the_repository_is_in_the_navigation() -> None:
    missing = [page.name for page in PAGES if page not in MADE]
    assert not missing, f"add to nav in mkdocs.yml or mkdocs.zh.yml: {missing}"


def test_every_page_of_the_navigation_exists_once() -> None:
    for language in make_site.CONFIGS:
        pages = make_site.pages_of(language)
        assert len(pages) == len(set(pages)) >= 4
    assert [file for file in MADE if not file.is_file()] == []


def test_a_chinese_entry_for_an_english_page_names_a_page_of_the_english_site() -> None:
    links = re.findall(r"（英文）: \.\./(.*)/$", make_site.CONFIGS["zh"].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(links) > 10
    assert {f"{link}.md" for link in links} <= set(make_site.pages_of("en"))


@pytest.mark.parametrize("page", list(MADE), ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_page_or_picture_of_the_site(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_site, "mathml", lambda formula: "")
    language, name = MADE[page]
    text = make_site.on_site(page.read_text(encoding="utf-8"), page, MADE)
    prose = make_site.CODE.sub("", make_site.FENCED.sub("", text))
    targets = [target for _, _, target in make_site.LINK.findall(prose)]
    sites = {language: {*make_site.pages_of(language)} for language in make_site.CONFIGS}
    for target in (t.partition("#")[0] for t in targets if not t.startswith(make_site.EXTERNAL)):
        if target.endswith(".md"):
            assert str((Path("/") / name).parent.joinpath(target).resolve())[1:] in sites[language], target
        elif target.startswith("images/"):
            assert (DOCS / target).is_file(), target
        elif target:
            assert target.startswith(".") and target.endswith("/"), target  # a page in the other language
    assert "](docs/" not in prose and "written by docs/" not in prose


@pytest.mark.parametrize(
    ("page", "given", "made"),
    [
        ("README.md", "[a](docs/data.md#sizes)", "[a](data.md#sizes)"),
        ("README.md", "[a](README.zh.md)", "[a](./zh/)"),
        ("README.zh.md", "[a](docs/gallery.zh.md)", "[a](gallery.md)"),
        ("README.zh.md", "[a](docs/data.md)", "[a](../data/)"),
        ("docs/by_hand.md", "[a](by_hand.zh.md)", "[a](../zh/by_hand/)"),
        ("docs/by_hand.zh.md", "[a](../README.md)", "[a](../../)"),
        ("docs/by_hand.md", "![a](images/x.png) [b](#here)", "![a](images/layer.svg) [b](#here)"),
        ("docs/by_hand.md", "`[a](b.md)` and <!-- written by x -->\n", "`[a](b.md)` and "),
        ("docs/by_hand.md", "```yaml fragment\na: 1\n```\n", "```yaml\na: 1\n```\n"),
        (
            "README.md",
            '<img alt="a" src="docs/images/layer.svg" width="5">',
            '<img alt="a" src="images/layer.svg" width="5">',
        ),
        ("docs/data.md", '<img alt="a" src="images/layer.svg">', '<img alt="a" src="../images/layer.svg">'),
        (
            "docs/data.md",
            '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="images/layer.dark.svg">\n'
            '  <img alt="a" src="images/layer.svg">\n</picture>',
            "![a](images/layer.svg#only-light)\n![a](images/layer.dark.svg#only-dark)",
        ),
    ],
)
def test_a_link_or_picture_of_a_page_becomes_that_of_the_site(page: str, given: str, made: str) -> None:
    given = given.replace("images/x.png", "images/layer.svg")
    assert make_site.on_site(given, TOP / page, MADE) == made


def test_a_link_to_a_file_outside_the_site_goes_to_the_repository_or_becomes_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for base, made in (("", "a"), ("https://x.org/blob/main/", "[a](https://x.org/blob/main/pyproject.toml)")):
        monkeypatch.setattr(make_site, "repository", lambda base=base: base)
        assert make_site.on_site("[a](pyproject.toml)", TOP / "README.md", MADE) == made


def test_a_dead_link_stops_the_site() -> None:
    with pytest.raises(FileNotFoundError, match=r"README\.md links to nowhere\.md, which does not exist"):
        make_site.on_site("[a](nowhere.md)", TOP / "README.md", MADE)


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    for page in MADE:
        for language, formula in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            if language == "math":
                made = make_site.mathml(formula)
                assert made.count("<math") == 1 and "\\" not in made, formula


def test_each_package_with_a_stub_has_a_page_with_every_public_name() -> None:
    pages = {Path(page).stem for page in make_site.pages_of("en") if page.startswith("api/")}
    stubs = [*TOP.glob("moekit/__init__.pyi"), *TOP.glob("plugins/*/__init__.pyi")]
    assert pages == {stub.parent.name for stub in stubs}
    for package in pages:
        listed = re.findall(r"^::: (\S+)\.(\w+)$", make_site.api_page(package), re.MULTILINE)
        assert listed
        for module, name in listed:
            exported = getattr(importlib.import_module(package), name)
            assert exported is getattr(importlib.import_module(module), name), f"{package}.{name}"
