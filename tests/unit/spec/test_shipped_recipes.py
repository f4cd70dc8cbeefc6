"""Every recipe of the installed plugins: it loads, and what is dumped of it loads to the same."""

from __future__ import annotations

import pytest
from fake_plugins import module

from moekit.component import Component
from moekit.errors import SpecError
from moekit.registry import current, discover, temporary
from moekit.spec import dump, load, to_config, to_plain
from moekit.spec.kinds import RouterSpec
from moekit.spec.tree import read
from moekit_report import diff


class Rival(RouterSpec):
    """Options of a router that another plugin calls topk too."""


RECIPES = [recipe.full_name for recipe in discover().recipes]


def test_recipes_are_shipped_with_moekit() -> None:
    assert {"papers/jacobs1991", "papers/deepseek_v3"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_round_trips(name: str, real_plugins: None) -> None:
    recipe = load(name)
    assert load(to_plain(recipe)) == load(to_config(recipe)) == recipe
    assert load(read(dump(recipe), "dump").data) == recipe
    assert diff(recipe, recipe) == []
    folder = "lineage-" if "/lineage/" in name else ""  # so that its runs are not taken for the paper's recipe's
    assert recipe.name == folder + name.rpartition("/")[2]


def test_two_related_papers_differ_in_eleven_lines(real_plugins: None) -> None:
    lines = [str(change) for change in diff(load("glam"), load("deepseek_moe"))]
    assert len(lines) == 11
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


def test_a_plugin_with_a_router_of_the_same_name_changes_no_shipped_recipe(real_plugins: None) -> None:
    before = load("deepseek_v3")
    saved = dump(before, full_names=True)
    rival = Component(name="topk", spec=Rival, target="nowhere:Rival", summary="a rival")
    with temporary(module("rival", components=[rival])):
        assert load("deepseek_v3") == before
        assert load("deepseek_v3", ["model.moe.router.top_k=4"]).model.moe.router.top_k == 4  # type: ignore[attr-defined]
        with pytest.raises(SpecError, match=r"router .topk. is offered by 2 plugins: routers/topk .*, rival/topk"):
            load("deepseek_v3", ["model.moe.router={use: topk, top_k: 4}"])
        assert load(read(saved, "spec.yaml").data) == load(to_plain(before)) == before


@pytest.mark.parametrize(
    ("overrides", "tokenizer"),
    [
        (["data.use=text_files", "data.path=mine"], ("BytePairs", 300)),
        (["data={use: chat, path: mine.jsonl}", "data.seq=8"], ("BytePairs", 300)),
        (["data={use: text_files, path: mine, tokenizer: bytes}"], ("Bytes", 256)),
        (["data.use=text_files", "data.path=mine", "data.tokenizer={use: bpe, vocab: 260}"], ("BytePairs", 260)),
        (["data.use=text_files", "data.path=mine", "start=null"], ("Bytes", 256)),
    ],
)
def test_other_data_keeps_the_tokenizer_of_trained_weights(
    overrides: list[str], tokenizer: tuple[str, int], real_plugins: None
) -> None:
    """Unless it names one, or nothing was trained."""
    trained = {"start": {"run": "before"}, "data": {"use": "local_text", "tokenizer": {"use": "bpe", "vocab": 300}}}
    found = getattr(load(["base/language_model", trained, {"model": {"vocab": 300}}], overrides).data, "tokenizer")  # noqa: B009
    assert (type(found).__name__, found.vocab) == tokenizer
