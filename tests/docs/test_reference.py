"""The reference is what its generator makes of the registry, and has all of it."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from test_docs import TOP

from moekit.cli.core import VERBS
from moekit.registry import current
from moekit.spec.fields import fields_of

DOCS = TOP / "docs"
sys.path.append(str(DOCS))

import make_reference  # noqa: E402


def stored(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", make_reference.PAGES)
def test_a_page_of_the_reference_is_up_to_date(name: str) -> None:
    assert make_reference.PAGES[name]() == stored(name), "run: python docs/make_reference.py"


@pytest.mark.parametrize("name", make_reference.FILLED)
def test_the_generated_blocks_of_a_page_are_up_to_date(name: str) -> None:
    assert make_reference.filled(name) == stored(name), "run: python docs/make_reference.py"
    assert stored(name).count("written by docs/make_reference.py") == len(make_reference.BLOCK.findall(stored(name)))


def test_every_component_has_a_section_with_every_option() -> None:
    page = stored("components.md")
    sections = dict(re.findall(r"^### (\w+ `[^`]+`)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    components = current().components()
    assert len(sections) == len(components) > 80
    for component in components:
        section = sections[f"{component.kind} `{component.name}`"]
        for name, info in fields_of(component.spec_class).items():
            held = f"| `{name}` |" in section or (info.kind == "group" and f"| `{name}." in section)
            assert held, f"{component}: {name}"
        assert component.summary[1:] in section and component.paper in section


def test_every_verb_has_a_section_with_every_argument_of_its_help() -> None:
    page = stored("commands.md")
    names = [*VERBS, *(verb.name.replace(".", " ") for verb in current().verbs if verb.name not in VERBS)]
    assert re.findall(r"^## moekit ([\w ]+)$", page, re.MULTILINE) == names
    for verb in current().verbs:
        section = page.split(f"\n## moekit {make_reference.called(verb)}\n")[1].split("\n## ")[0]
        options = set(re.findall(r"(--[\w-]+)", make_reference.parser_of(verb).format_usage())) - {"--help"}
        assert options <= set(re.findall(r"(?<=[`, ])(--[\w-]+)", section))


def test_every_recipe_is_listed() -> None:
    listed = re.findall(r"^\| `([\w/.-]+)` \|", stored("recipes.md"), re.MULTILINE)
    assert sorted(listed) == sorted(recipe.name for recipe in current().recipes)


def test_every_extra_is_listed_with_what_it_is_for() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(make_reference.EXTRAS) == list(project["optional-dependencies"])


def test_every_listed_plugin_says_where_it_is_and_what_it_offers() -> None:
    listed = tomllib.loads((DOCS / "plugins.toml").read_text(encoding="utf-8"))["plugin"]
    assert [one["package"] for one in listed] == sorted({one["package"] for one in listed}) != []
    for one in listed:
        assert set(one) == {"package", "home", "offers", "summary", "moekit"}
        assert set(one["offers"]) <= {*current().kinds, "recipe", "verb", "hook"}, one["package"]
        assert one["home"].startswith("https://") or (TOP / one["home"] / "pyproject.toml").is_file()
        assert one["package"] in stored("plugin_directory.md")
