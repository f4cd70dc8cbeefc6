"""Recipes of a paper's size train as the paper did: optimizer, peak learning rate, schedule."""

from __future__ import annotations

import bisect
import itertools
import math

import pytest

from moekit.registry import build
from moekit.spec import load
from moekit_balancers.sign_bias import SignBias
from moekit_objectives.causal_lm import CausalLM
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


def tokens_done(name: str, whole: float, steps: int) -> list[float]:
    """Tokens after each step of a recipe whose whole batch has ``whole`` tokens."""
    ramp = load(name).batch_ramp
    assert ramp is not None
    return list(itertools.accumulate(whole * ramp.share(step) for step in range(steps)))


@pytest.mark.parametrize(
    ("name", "batches", "within", "in_all", "steps"),
    [
        ("deepseek_v3-671b", (3072, 15_360), 469e9, 14.8e12, 240_209),
        ("deepseek_v2-236b", (2304, 9216), 225e9, 8.1e12, 218_152),
    ],
)
def test_deepseeks_batch_grows_within_the_papers_tokens(
    name: str, batches: tuple[int, int], within: float, in_all: float, steps: int
) -> None:
    recipe = load(name)
    assert recipe.batch_ramp is not None
    assert recipe.batch_ramp.share(0) == batches[0] / batches[1]
    done = tokens_done(name, batches[1] * 4096, steps)
    assert done[recipe.batch_ramp.steps - 1] == pytest.approx(within, rel=1e-3)
    assert done[-1] == pytest.approx(in_all, rel=1e-4)


def test_v3s_rate_passes_through_the_papers_four_stages_at_its_tokens() -> None:
    recipe, steps = load("deepseek_v3-671b"), 240_209
    done = tokens_done("deepseek_v3-671b", 15_360 * 4096, steps)
    factor = build(recipe.schedule, steps)

    def rate_at(tokens: float) -> float:
        return PEAKS["deepseek_v3-671b"] * factor(bisect.bisect(done, tokens))

    assert factor(999) == 0.5 and factor(1999) == 1.0
    assert [rate_at(t) for t in (1e12, 9.95e12)] == pytest.approx([2.2e-4, 2.2e-4])
    assert rate_at(12.15e12) == pytest.approx((2.2e-4 + 2.2e-5) / 2, rel=0.01)  # halfway along the cosine
    assert [rate_at(t) for t in (14.31e12, 14.62e12)] == pytest.approx([2.2e-5] * 2)
    assert [rate_at(t) for t in (14.65e12, 14.799e12)] == pytest.approx([7.3e-6] * 2, rel=2e-3)


def test_v3s_lambda_and_bias_change_at_the_papers_tokens() -> None:
    recipe, steps = load("deepseek_v3-671b"), 240_209
    done = tokens_done("deepseek_v3-671b", 15_360 * 4096, steps)
    objective, bias = recipe.objective, recipe.model.moe.balancers["bias"]  # type: ignore[attr-defined]
    assert isinstance(objective, CausalLM) and isinstance(bias, SignBias)
    assert done[round(objective.mtp_late_from * steps)] == pytest.approx(10e12, rel=2e-3)
    assert done[round(bias.until * steps)] == pytest.approx(14.3e12, rel=2e-3)


def test_v2s_rate_falls_after_60_and_90_percent_of_the_tokens() -> None:
    steps = 218_152
    done = tokens_done("deepseek_v2-236b", 9216 * 4096, steps)
    factor = build(load("deepseek_v2-236b").schedule, steps)
    found = [factor(bisect.bisect(done, share * 8.1e12)) for share in (0.5, 0.595, 0.605, 0.895, 0.905)]
    assert found == pytest.approx([1, 1, 0.316, 0.316, 0.316**2])


def test_loss_free_balancing_falls_to_a_tenth_along_a_cosine() -> None:
    recipe = load("aux_free-1b")
    assert isinstance(recipe.optimizer, AdamW) and recipe.optimizer.lr == 1e-3
    factor = build(recipe.schedule, 40_000)
    assert factor(39_999) == pytest.approx(0.1) and factor(19_999) == pytest.approx(0.55)


@pytest.mark.parametrize(
    "name",
    ["gshard-600b", "gshard-12b", "glam-64b", "glam-8b", "switch-base", "switch-c", "st_moe-32b", "st_moe-l"],
)
def test_adafactor_recipes_use_one_over_the_root_of_the_step(name: str) -> None:
    """Its relative step is min(lr, 1/sqrt(step)): .01 for 10,000 steps, then the inverse root, with no schedule."""
    recipe = load(name)
    assert isinstance(recipe.optimizer, Adafactor) and recipe.optimizer.decay == 0.8
    factor = build(recipe.schedule, STEPS)
    assert factor(0) == factor(STEPS - 1) == 1.0
    assert min(recipe.optimizer.lr, 1 / math.sqrt(10_000)) == 0.01
