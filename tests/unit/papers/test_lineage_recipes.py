"""The recipes of ``lineage/`` differ only below ``model.moe``, and have equal total and equal active widths."""

from __future__ import annotations

import itertools

import pytest

from moekit.params import ParameterCount, count_parameters
from moekit.registry import current
from moekit.spec import load
from moekit_report import diff

NAMES = sorted(c.name for c in current().recipes if c.name.startswith("lineage/"))
MIXTURES = [name for name in NAMES if name != "lineage/dense"]
FEED = ("routed experts", "shared experts", "dense ffn")
DIM, ACTIVE, WIDTH = 64, 216, 3456
"""Width of the tokens; active and total hidden units of gated experts in a layer of mixtures."""


def widths(parts: dict[str, int]) -> float:
    """Hidden units of gated experts of three matrices that have as many parameters as the feed-forward parts."""
    return sum(parts.get(name, 0) for name in FEED) / (3 * DIM)


def count(name: str) -> ParameterCount:
    return count_parameters(load(name))


def test_the_field_has_the_papers_from_2017_to_2024() -> None:
    years = (
        "shazeer2017",
        "gshard",
        "switch",
        "hash",
        "glam",
        "st_moe",
        "deepseek_moe",
        "deepseek_v2",
        "aux_free",
        "deepseek_v3",
    )
    assert MIXTURES == sorted(f"lineage/{name}" for name in years)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(NAMES, 2)))
def test_two_recipes_of_the_field_differ_only_below_model_moe(one: str, other: str) -> None:
    paths = [line.path for line in diff(load(one), load(other))]
    assert paths and all(path == "model.moe" or path.startswith("model.moe.") for path in paths)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_have_equal_total_and_equal_active_widths(name: str) -> None:
    """Within .6 %: ST-MoE's experts have scales in addition."""
    found, dense = count(name), count("lineage/dense")
    assert widths(dict(found.parts)) == pytest.approx(3 * WIDTH + ACTIVE, rel=6e-3)
    assert widths(dict(found.active_parts)) == pytest.approx(4 * ACTIVE, rel=6e-3)
    assert widths(dict(dense.parts)) == widths(dict(dense.active_parts)) == 4 * ACTIVE
    assert found.parts["attention"] == dense.parts["attention"]


def test_whole_counts_differ_by_the_routers_alone() -> None:
    totals = {name: count(name) for name in MIXTURES}
    without = [c.total - c.parts["routers"] for c in totals.values()]
    assert max(without) / min(without) - 1 < 6e-3
    assert max(c.total for c in totals.values()) / min(c.total for c in totals.values()) - 1 < 0.02
