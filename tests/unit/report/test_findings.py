"""Findings name the layer, since when, and the key of this recipe to turn; a healthy run has none to turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moekit.spec import load, to_plain
from moekit_report.findings import balance_key, findings
from moekit_report.reading import LayerLog
from moekit_report.specialisation import Specialisation


def log(load: np.ndarray, **values: Any) -> LayerLog:
    R = len(load)
    columns = {
        "pairs": load.sum(1), "tokens": load.sum(1), "dropped_pairs": np.zeros(R), "dropped_tokens": np.zeros(R),
        "logit_norm": np.ones(R), "changed": np.full(R, np.nan),
    }  # fmt: skip
    bias = np.full(load.shape, np.nan)
    return LayerLog(step_X=np.arange(1, R + 1) * 10, load_XE=load, bias_XE=bias, values=columns | values)


EVEN = np.full((40, 8), 100)


def one(kind: str, **logs: Any) -> Any:
    """The only finding of a kind."""
    recipe = to_plain(load("deepseek_v3"))
    (found,) = [each for each in findings(logs.get("train", {}), logs.get("val", {}), recipe) if each.kind == kind]
    return found


def test_starved_experts_are_dated_from_when_they_stayed_so() -> None:
    load_XE = EVEN.copy()
    load_XE[5, 3] = 0  # for a moment
    load_XE[24:, 3] = load_XE[30:, 6] = 5
    found = one("starved", train={"blocks.1.ffn": log(load_XE)})
    assert found.level == "warning"
    assert found.text == (
        "Layer blocks.1.ffn: 2 of 8 experts get less than 10% of a fair share, the first since step 250."
    )
    assert found.key == "raise model.moe.balancers.bias.rate (now 0.01)"


def test_an_even_load_is_good_news_alone() -> None:
    (found,) = findings({"a": log(EVEN)}, {"a": log(EVEN)}, {})
    assert (found.kind, found.level, found.key) == ("load", "good", "")


def test_drops_name_the_capacity_of_the_recipe() -> None:
    dropped = np.concatenate([np.zeros(30), np.full(10, 40)])
    found = findings({"a": log(EVEN, dropped_pairs=dropped, dropped_tokens=dropped / 2)}, {}, to_plain(load("switch")))[
        0
    ]
    assert found.text == ("Layer a: 5.0% of pairs are dropped at the end, and 2.5% of tokens lose all their experts.")
    assert found.key.startswith("raise model.moe.dispatcher.factor (now ")


def test_growing_logits_and_changing_assignments_are_noted() -> None:
    grown = one("logits", train={"a": log(EVEN, logit_norm=np.linspace(1, 5, 40))})
    assert "grew from" in grown.text and "z_loss" in grown.key
    with pytest.raises(ValueError, match="not enough values"):
        one("logits", train={"a": log(EVEN, logit_norm=np.minimum(np.linspace(1, 12, 40), 5))})  # it has stopped
    changed = one("changes", val={"a": log(EVEN, changed=np.full(40, 0.4)), "b": log(EVEN)})
    assert changed.text.startswith("1 of 2 layers: more than 30% of tokens changed their first expert")


def test_specialisation_is_said_only_where_the_test_found_it() -> None:
    share = np.full((2, 8), 1 / 8)
    for p, level in ((0.001, "good"), (0.2, "note")):
        special = Specialisation(share_XE=share, bits=0.5, chance=0.1, p=p, high_XE=share > 1)
        (found,) = findings({}, {}, {}, {"a": special})
        assert (found.kind, found.level) == ("domains", level)


def test_a_recipe_without_balancer_should_add_one() -> None:
    assert balance_key(to_plain(load("switch"))).startswith("raise model.moe.balancers.")
    assert balance_key({"model": {}}).startswith("add a balancer: ")
