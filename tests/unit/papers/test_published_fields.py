"""No recipe of a paper's size contradicts its authors' configuration without a line that says so.

``published_fields.csv`` has a row for each field that was read in the authors' code: recipe, path, the authors' value,
words of the recipe's comments where it has another, and the file with the name of the setting in it.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import moekit_papers
from moekit.registry import current
from moekit.spec import load
from moekit.spec.fields import Spec

FLAXFORMER = "google/flaxformer@399ea3a flaxformer/t5x/configs/moe"
CODE = "google/flaxformer@399ea3a flaxformer/architectures"
DEEPSEEK = "deepseek-ai/DeepSeek-V3@9b4e978 inference"
SOURCES = {
    **{
        f"{name}.gin": f"{FLAXFORMER}/models/{name}.gin"
        for name in (
            "tokens_choose_base", "tokens_choose_large", "switch_base", "switch_large", "switch_xxl", "switch_c",
            "st_moe_base", "st_moe_32b",
        )
    },
    "moe.gin": f"{FLAXFORMER}/architectures/moe.gin",
    "moe_layers.py": f"{CODE}/moe/moe_layers.py",
    "routing.py": f"{CODE}/moe/routing.py",
    "t5_architecture.py": f"{CODE}/t5/t5_architecture.py",
    "pretrain.gin": "google-research/t5x@cc342d4 t5x/contrib/moe/configs/runs/pretrain.gin",
    "moe.py": "tensorflow/mesh@da90793 mesh_tensorflow/transformer/moe.py",
    "synthetic_packed_input.py": "tensorflow/lingvo@e0be5dc lingvo/tasks/lm/params/synthetic_packed_input.py",
    "gshard_builder.py": "tensorflow/lingvo@e0be5dc lingvo/core/gshard_builder.py",
    "gshard_layers.py": "tensorflow/lingvo@e0be5dc lingvo/core/gshard_layers.py",
    "model.py": f"{DEEPSEEK}/model.py",
    **{f"config_{size}.json": f"{DEEPSEEK}/configs/config_{size}.json" for size in ("671B", "236B", "16B")},
}  # fmt: skip
"""Each file of the table: its repository, commit and path."""

UNPUBLISHED = {
    "shazeer2017-": "the models of the paper are not in the authors' code, only its gate",
    "deepseek_moe-": "a model hub has the configuration of 16B, which agrees in its counted parameters; of others none",
    "aux_free-": "no code of the paper is public",
}
"""Recipes without rows, by the start of their name, and why."""


class Row(NamedTuple):
    """A field of a recipe in its authors' configuration."""

    recipe: str
    path: str
    authors: str
    says: str
    source: str


FILE = Path(__file__).with_name("published_fields.csv")
ROWS = [Row(*cells) for cells in list(csv.reader(FILE.read_text(encoding="utf-8").splitlines()))[1:]]


@cache
def ancestry(name: str) -> list[tuple[str, str]]:
    """A recipe's file and those that it extends: names and texts."""
    text = Path(moekit_papers.__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    parent = yaml.safe_load(text).get("extends")
    return [(name, text), *(ancestry(parent) if parent else [])]


def comments(name: str) -> str:
    """All comments of a recipe and of those that it extends, as running text."""
    lines = (line for _, text in ancestry(name) for line in text.splitlines() if "#" in line)
    return " ".join(line.partition("#")[2].strip() for line in lines)


def value_at(recipe: str, path: str) -> Any:
    found: Any = load(recipe)
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def agrees(found: Any, authors: str) -> bool:
    """Whether a field has the authors' value; of a component, whether it has the fields that they name."""
    expected = yaml.safe_load(authors)
    if isinstance(found, Spec):
        return current().use_name(found) == expected.pop("use") and all(
            getattr(found, key) == value for key, value in expected.items()
        )
    return bool(found == expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.recipe}:{row.path}:{row.authors}")
def test_a_recipe_has_its_authors_value_or_says_why_not(row: Row) -> None:
    found = value_at(row.recipe, row.path)
    same = agrees(found, row.authors)
    if row.says:
        assert not same, f"{row.path} is {found!r} now, as the authors have it; remove the words '{row.says}'"
        assert row.says in comments(row.recipe), f"{row.path} is {found!r}; the authors have {row.authors}"
    else:
        assert same, f"{row.recipe}: {row.path} is {found!r}; {row.source} has {row.authors}: say so in the recipe"


def test_every_row_names_a_file_of_its_authors() -> None:
    for row in ROWS:
        name, _, setting = row.source.partition(" ")
        assert name in SOURCES and setting, row
    assert {row.source.partition(" ")[0] for row in ROWS} == set(SOURCES)


def test_every_recipe_of_a_papers_size_is_in_the_table_or_extends_one() -> None:
    sizes = [c.name for c in current().recipes if c.plugin == "papers" and load(c.name).data is None]
    known = {row.recipe for row in ROWS}
    for name in sizes:
        covered = any(ancestor in known for ancestor, _ in ancestry(name))
        assert covered != name.startswith(tuple(UNPUBLISHED)), name


def test_a_deviation_without_its_words_is_found() -> None:
    assert "30 heads in switch_c.gin" in comments("switch-c") and "1e-4 in st_moe_base.gin" in comments("st_moe-l")
    assert not agrees(value_at("switch-c", "model.attention.heads"), "30")
    assert not agrees(value_at("switch-xxl", "model.ffn"), "{use: ffn, hidden: 10240, activation: gelu}")


def test_shazeers_recipes_say_that_the_papers_softmax_is_sampled() -> None:
    for name in ("shazeer2017-256", "shazeer2017-4", "shazeer2017-143m"):
        assert "samples its softmax over the 793,471 words" in comments(name)
