"""Pages in two languages: the same code, headings, tables and figures, and components that exist under their names.

``test_docs.py`` runs the blocks of the English pages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import FENCED, TESTED, TOP, prose

from moekit.registry import current
from moekit.spec import component_spec
from moekit.spec.fields import Spec
from moekit.spec.kinds import MoE

DOCS = TOP / "docs"


def translation(english: Path) -> Path:
    """The Chinese page."""
    return english.with_suffix(".zh.md")


TRANSLATED = [path.with_name(path.name.replace(".zh", "")) for path in (*TOP.glob("*.zh.md"), *DOCS.glob("*.zh.md"))]
LESSONS = [DOCS / "by_hand.md", DOCS / "future.md"]  # pages that teach by code, equations and components
PAIRS = pytest.mark.parametrize("english", TRANSLATED, ids=lambda page: page.name)
PAGES = pytest.mark.parametrize(
    "page", [p for page in LESSONS for p in (page, translation(page))], ids=lambda p: p.name
)
NO_COMPONENTS = {"assert", "causal", "groups", "rule", "shared", "start", "x"}  # Python, options, slots, a variable
SLOTS = {"router": "router", "experts": "expert", "shared": "expert", "dispatcher": "dispatcher"}


class WithoutPrintedText(ast.NodeTransformer):
    """Empties the strings in calls of ``print``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            for child in ast.walk(node):
                if isinstance(child, ast.Constant) and isinstance(child.value, str):
                    child.value = ""
        return self.generic_visit(node)


def meaning(language: str, text: str) -> str:
    """A block without what a translation may change: comments, printed strings, text in formulas."""
    if language == "python":
        return ast.dump(WithoutPrintedText().visit(ast.parse(text)))
    return re.sub(r"\\text\{[^}]*\}" if language == "math" else r" +# .*", "", text)


def fragments(page: Path) -> Iterator[dict[str, Any]]:
    for language, text in FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "yaml fragment":
            yield yaml.safe_load(text)


def test_the_pages_that_teach_are_translated() -> None:
    assert {*LESSONS, TOP / "README.md", DOCS / "gallery.md"} <= set(TRANSLATED)


@PAIRS
def test_both_languages_have_the_same_code(english: Path) -> None:
    blocks, chinese = (
        [(language, meaning(language, text)) for language, text in FENCED.findall(page.read_text(encoding="utf-8"))]
        for page in (english, translation(english))
    )
    assert len(blocks) > (12 if english in LESSONS else -1)
    for one, other in zip(blocks, chinese, strict=True):
        assert one == other


@PAIRS
def test_each_page_links_to_its_translation(english: Path) -> None:
    for page, other in ((english, translation(english)), (translation(english), english)):
        assert f"]({other.name})" in page.read_text(encoding="utf-8").partition("\n## ")[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1  # one", "x = 1  # 一", True),
        ("print('loss', x)", "print('损失', x)", True),
        ("x = 'one'", "x = '一'", False),
        ("x = 1", "x = 2", False),
    ],
)
def test_translations_may_change_comments_and_printed_strings_alone(one: str, other: str, same: bool) -> None:
    assert (meaning("python", one) == meaning("python", other)) is same


@PAIRS
def test_both_languages_have_the_same_headings_tables_inline_code_and_numbers(english: Path) -> None:
    one, other = TESTED.sub("", prose(english)), prose(translation(english))
    assert re.findall(r"^#+", one, re.MULTILINE) == re.findall(r"^#+", other, re.MULTILINE)
    assert len(re.findall(r"^\|", one, re.MULTILINE)) == len(re.findall(r"^\|", other, re.MULTILINE))
    assert re.findall(r"#\d{3,}", one) == re.findall(r"#\d{3,}", other)  # issues
    assert sorted(re.findall(r"`[^`\n]+`", one)) == sorted(re.findall(r"`[^`\n]+`", other))
    assert sorted(re.findall(r"\d+\.\d+", one)) == sorted(re.findall(r"\d+\.\d+", other))


@PAGES
def test_the_components_in_yaml_fragments_compose(page: Path) -> None:
    """Composed as one layer, so that conflicts are errors too."""
    count = 0
    for fragment in fragments(page):
        parts: dict[str, Any] = {
            "router": component_spec("router", {"use": "topk", "top_k": 2}),
            "experts": component_spec("expert", {"use": "glu", "count": 64, "hidden": 8}),
            "dispatcher": component_spec("dispatcher", "loop"),
        }
        for key, node in fragment.items():
            if key == "balancers":
                parts[key] = {name: component_spec("balancer", one) for name, one in node.items()}
                count += len(node)
                continue
            spec: Spec = component_spec(SLOTS.get(key, key), node)
            parts |= {key: spec} if key in SLOTS else {}
            count += 1
        MoE(**parts)
    assert count >= (20 if page.name.startswith("by_hand") else 8)


@PAGES
def test_every_component_and_recipe_named_in_the_prose_exists(page: Path) -> None:
    words = set(re.findall(r"`([a-z0-9_]+)`", prose(page))) - NO_COMPONENTS
    assert len(words) > (15 if page.name.startswith("by_hand") else 3)
    assert not words - {offer.name for offer in [*current().components(), *current().recipes]}


@pytest.mark.parametrize("page", [p for page in TRANSLATED for p in (page, translation(page))], ids=lambda p: p.name)
def test_no_phrase_of_a_page_is_repeated_at_once(page: Path) -> None:
    assert not [match[0] for match in re.finditer(r"([^|`\s-][^|`\n]{7,})\1", prose(page))]


def test_what_the_future_page_calls_missing_is_missing() -> None:
    """A change that adds one of these also says on ``future.md``, in both languages, where it is."""
    missing = {"relu", "soft_slots", "threshold", "quantile_bias", "latent"}
    assert not missing & {component.name for component in current().components()}
    page = (DOCS / "future.md").read_text(encoding="utf-8")
    assert page.count("**Here.**") == page.count("Missing: ") == 8
