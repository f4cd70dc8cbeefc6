"""Recipes of a paper's size train as the paper did: optimizer, peak learning rate, schedule."""

from __future__ import annotations

import math

import pytest

from moekit.registry import build
from moekit.spec import load
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.adamw import AdamW

STEPS = 100_000
PEAKS = {
    "deepseek_moe-2b": 1.08e-3,
    "deepseek_moe-16b": 4.2e-4,
    "deepseek_moe-145b": 3.0e-4,
    "deepseek_v2-236b": 2.4e-4,
    "deepseek_v2-lite": 4.2e-4,
    "deepseek_v3-671b": 2.2e-4,
}
FALLS = {
    "deepseek_moe-2b": (0.8, 0.9),
    "deepseek_moe-16b": (0.8, 0.9),
    "deepseek_moe-145b": (),
    "deepseek_v2-236b": (0.6, 0.9),
    "deepseek_v2-lite": (0.8, 0.9),
}


@pytest.mark.parametrize("name", PEAKS)
def test_deepseek_recipes_use_the_papers_adamw(name: str) -> None:
    recipe = load(name)
    assert recipe.optimizer == AdamW(lr=PEAKS[name], weight_decay=0.1, betas=[0.9, 0.95])
    assert recipe.trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("name", FALLS)
def test_deepseeks_rate_falls_to_a_third_at_fractions_of_the_run(name: str) -> None:
    factor = build(load(name).schedule, STEPS)
    assert factor(999) == pytest.approx(0.5) and factor(1999) == 1.0
    for share in (0.5, 0.7, 0.85, 0.95):
        assert factor(round(share * STEPS)) == pytest.approx(0.316 ** sum(fall < share for fall in FALLS[name]))


def test_loss_free_balancing_falls_to_a_tenth_along_a_cosine() -> None:
    recipe = load("aux_free-1b")
    assert isinstance(recipe.optimizer, AdamW) and recipe.optimizer.lr == 1e-3
    factor = build(recipe.schedule, 40_000)
    assert factor(39_999) == pytest.approx(0.1) and factor(19_999) == pytest.approx(0.55)


@pytest.mark.parametrize("name", ["glam-64b", "glam-8b", "switch-base", "switch-c", "st_moe-32b", "st_moe-l"])
def test_adafactor_recipes_use_one_over_the_root_of_the_step(name: str) -> None:
    """Its relative step is min(lr, 1/sqrt(step)): .01 for 10,000 steps, then the inverse root, with no schedule."""
    recipe = load(name)
    assert isinstance(recipe.optimizer, Adafactor) and recipe.optimizer.decay == 0.8
    factor = build(recipe.schedule, STEPS)
    assert factor(0) == factor(STEPS - 1) == 1.0
    assert min(recipe.optimizer.lr, 1 / math.sqrt(10_000)) == 0.01
