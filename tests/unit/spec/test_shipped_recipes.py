"""Every recipe of the installed plugins: it loads, and what is dumped of it loads to the same."""

from __future__ import annotations

import pytest

from moekit.registry import current, discover
from moekit.spec import diff, dump, load, to_plain
from moekit.spec.yaml_text import read

RECIPES = [recipe.full_name for recipe in discover().recipes]


def test_recipes_are_shipped_with_moekit() -> None:
    assert {"papers/jacobs1991", "papers/deepseek_v3"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_round_trips(name: str, real_plugins: None) -> None:
    recipe = load(name)
    assert load(to_plain(recipe)) == recipe
    assert load(read(dump(recipe), "dump").data) == recipe
    assert diff(recipe, recipe) == []
    assert recipe.name == name.rpartition("/")[2]


def test_two_related_papers_differ_in_ten_lines(real_plugins: None) -> None:
    lines = [str(change) for change in diff(load("glam"), load("deepseek_moe"))]
    assert len(lines) == 10
    assert "model.moe.experts: ffn(count=16, hidden=432) -> glu(count=64, hidden=54)" in lines
    assert "model.moe.at: (every=2) -> (first=1)" in lines


def test_two_distant_papers_differ_in_at_most_twenty_lines(real_plugins: None) -> None:
    lines = [str(change) for change in diff(load("jacobs1991"), load("deepseek_v3"))]
    assert lines[0].startswith(
        "paper: Adaptive Mixtures of Local Experts (1991) -> DeepSeek-V3 Technical Report (2024)"
    )
    assert [line.partition("(")[0] for line in lines if line.startswith("model.moe.router")] == [
        "model.moe.router: dense"
    ]
    assert len(lines) <= 20
    assert current().failed == ()
