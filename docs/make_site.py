"""Assembles the pages of the site, in build/site/en and build/site/zh, which mkdocs.yml and mkdocs.zh.yml name.

python docs/make_site.py && mkdocs build --strict && mkdocs build --strict -f mkdocs.zh.yml

The pages of the two files' ``nav`` are copied from docs/ and from the top folder. Links between them are made those of
the site; a link to another file of the repository becomes its text. Formulas become MathML, which browsers show without
a script. The API pages are made of the packages' stubs.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).parents[1]
DOCS, BUILD = TOP / "docs", TOP / "build" / "site"
CONFIGS = {"en": TOP / "mkdocs.yml", "zh": TOP / "mkdocs.zh.yml"}
SUFFIX = {"en": ".md", "zh": ".zh.md"}
AT_TOP = {"index": "README", "contributing": "CONTRIBUTING", "changelog": "CHANGELOG"}
"""Pages of the site whose files are in the top folder."""

FENCED = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
PICTURE = re.compile(r"<picture>\s*<source media=\"[^\"]*dark\)\" srcset=\"([^\"]+)\">\s*<img ([^>]*)>\s*</picture>")
SOURCE = re.compile(r"(<img [^>]*src=\")([^\"]+)(\")")
CODE = re.compile(r"`[^`\n]+`")
COMMENT = re.compile(r"<!-- [^\n]*? -->\n")
EXTERNAL = ("http://", "https://", "mailto:")


class Loader(yaml.SafeLoader):
    """Reads a config whose values may be Python names, which are of no interest here."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def pages_of(language: str) -> list[str]:
    """The pages that the navigation of a language names, in its order."""
    config = yaml.load(CONFIGS[language].read_text(encoding="utf-8"), Loader)
    return [page for page in _leaves(config["nav"]) if page.endswith(".md")]


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from _leaves(entry)


def source_of(page: str, language: str) -> Path:
    """The file that a page of the site is made of."""
    name = page.removesuffix(".md")
    return (TOP / f"{AT_TOP[name]}{SUFFIX[language]}") if name in AT_TOP else DOCS / f"{name}{SUFFIX[language]}"


def sources() -> dict[Path, tuple[str, str]]:
    """The language and the page that each file is made into; API pages have no file."""
    return {
        source_of(page, language): (language, page)
        for language in CONFIGS
        for page in pages_of(language)
        if not page.startswith("api/")
    }


def repository() -> str:
    """The address of the files of the repository, if pyproject.toml names one; else empty."""
    urls = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    home = next((url for name, url in urls.items() if name.lower() in ("repository", "source")), "")
    return f"{home.rstrip('/')}/blob/main/" if home else ""


def address(target: str, source: Path, known: dict[Path, tuple[str, str]]) -> str | None:
    """A link's target as the site has it, seen from the page made of ``source``; None if the site has no such file.

    Raises:
        FileNotFoundError: the link names a file that does not exist.
    """
    language, page = known[source]
    path, hash_mark, anchor = target.partition("#")
    if target.startswith(EXTERNAL) or not path:
        return target
    file = (source.parent / path).resolve()
    if not file.exists():
        raise FileNotFoundError(f"{source.relative_to(TOP)} links to {target}, which does not exist")
    if file in known:
        other, name = known[file]
        if other == language:
            return os.path.relpath(name, Path(page).parent) + hash_mark + anchor
        depth = 0 if page == "index.md" else page.count("/") + 1
        root = "../" * (depth + (language == "zh")) or "./"
        tail = "" if name == "index.md" else name.removesuffix(".md") + "/"
        return f"{root}{'zh/' if other == 'zh' else ''}{tail}{hash_mark}{anchor}"
    if file.is_relative_to(DOCS / "images"):
        return os.path.relpath(file.relative_to(DOCS), Path(page).parent)
    base = repository()
    return f"{base}{file.relative_to(TOP)}" if base else None


def on_site(text: str, source: Path, known: dict[Path, tuple[str, str]]) -> str:
    """The text of a file as a page of the site.

    Raises:
        FileNotFoundError: a link names a file that does not exist.
    """
    kept: list[str] = []

    def keep(made: str) -> str:
        kept.append(made)
        return f"\0{len(kept) - 1}\0"

    def block(found: re.Match[str]) -> str:
        return keep(mathml(found[3]) if found[2] == "math" else found[0].replace("```yaml fragment", "```yaml"))

    def link(found: re.Match[str]) -> str:
        to = address(found[3], source, known)
        return found[2] if to is None else f"{found[1]}[{found[2]}]({to})"

    def picture(found: re.Match[str]) -> str:
        shown = dict(re.findall(r'(\w+)="([^"]*)"', found[2]))
        light, dark = (address(path, source, known) for path in (shown["src"], found[1]))
        alt = shown["alt"]
        return keep(f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)")

    def image(found: re.Match[str]) -> str:
        folder = "" if known[source][1] == "index.md" else "../"  # in HTML a path is relative to the page's folder
        return f"{found[1]}{folder}{address(found[2], source, known)}{found[3]}"

    text = CODE.sub(lambda code: keep(code[0]), FENCED.sub(block, text))
    text = LINK.sub(link, SOURCE.sub(image, PICTURE.sub(picture, text)))
    text = COMMENT.sub("", text)
    while "\0" in text:
        text = re.sub(r"\0(\d+)\0", lambda place: kept[int(place[1])], text)
    return text


def mathml(formula: str) -> str:
    """A block of TeX as MathML."""
    from latex2mathml.converter import convert

    tex = " ".join(re.sub(r"(\\Big)?\\\|", r"\\Vert ", formula).split())
    return f'<div class="formula">{convert(tex, display="block")}</div>'


def api_page(package: str) -> str:
    """The page of a package: every public name of its stub, by the module that defines it.

    A package imports its names on demand, so that documentation tools find none in the package itself.

    Raises:
        FileNotFoundError: the package has no stub.
    """
    stub = next(p for p in (TOP / package, TOP / "plugins" / package) if p.is_dir()) / "__init__.pyi"
    names = [
        f"{statement.module}.{name.name}"
        for statement in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
        if name.asname == name.name
    ]
    listed = "".join(f"::: {name}\n\n" for name in names)
    return f"# `{package}`\n\nThe public names of the package: `from {package} import ...`.\n\n{listed}"


def main() -> None:
    """Writes both languages anew."""
    shutil.rmtree(BUILD, ignore_errors=True)
    known = sources()
    for source, (language, page) in known.items():
        made = BUILD / language / page
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(on_site(source.read_text(encoding="utf-8"), source, known), encoding="utf-8")
    for page in pages_of("en"):
        if page.startswith("api/"):
            (BUILD / "en" / "api").mkdir(exist_ok=True)
            (BUILD / "en" / page).write_text(api_page(Path(page).stem), encoding="utf-8")
    for language in CONFIGS:
        shutil.copytree(DOCS / "images", BUILD / language / "images")
        shutil.copyfile(DOCS / "site.css", BUILD / language / "site.css")
    print(f"{len(known)} pages in {BUILD.relative_to(TOP)}")


if __name__ == "__main__":
    main()
