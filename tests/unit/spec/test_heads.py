"""The heads of recipes, which lists show."""

from __future__ import annotations

from pathlib import Path

from fake_plugins import plugin

from moekit.component import RecipeFile, recipes_in
from moekit.registry import Registry
from moekit.spec.loading import Head, head_of


def test_a_recipe_inherits_its_paper_and_data_from_what_it_extends(tmp_path: Path) -> None:
    files = {
        "paper": 'paper:\n  title: "Tall: a model"\n  year: 2021\ndata:\n  use: vowels\n  title: none of its own\n',
        "base/plain": "data: vowels\n",
        "small": "extends: paper\npaper: {claim: small}\n",
        "both": "extends: [base/plain, paper]\n",
        "counted": "extends: small\ndata: null  # to count\n",
        "round": "extends: trip\n",
        "trip": "extends: round\n",
    }
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).with_suffix(".yaml").write_text(text)
    registry = Registry([plugin("papers", recipes=list(recipes_in(tmp_path / "mine")))])
    heads = {recipe.name: head_of(recipe, registry) for recipe in registry.recipes}
    found = {name: (head.paper, head.year, head.trains) for name, head in heads.items()}
    assert found == {
        "paper": ("Tall 2021", 2021, True),
        "base/plain": ("", 0, True),
        "small": ("Tall 2021", 2021, True),
        "both": ("Tall 2021", 2021, True),
        "counted": ("Tall 2021", 2021, False),
        "round": ("", 0, False),
        "trip": ("", 0, False),
    }


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    nothing = Head(summary="", paper="", year=0, trains=False)
    (tmp_path / "broken.yaml").write_text("summary: [")
    for name in ("broken", "missing"):
        assert head_of(RecipeFile(name=name, path=tmp_path / f"{name}.yaml"), Registry([])) == nothing
