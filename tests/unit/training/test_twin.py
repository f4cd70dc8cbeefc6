"""What the dense model of a comparison shares with the mixture, and what it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from moekit import SpecError, load
from moekit.spec.kinds import OptimizerSpec
from moekit.training.build import dense_recipe

STOP = ["stop={metric: train/loss, below: 1.0}", "compare={lr: 0.125}"]


def test_it_is_trained_as_the_mixture_is_but_for_its_rate_and_to_the_last_step() -> None:
    """A dense model that stopped at the mixture's loss would be compared with nothing."""
    recipe = load("deepseek_v3", STOP)
    assert recipe.stop is not None
    twin: Any = dense_recipe(recipe)
    assert twin.model == recipe.model.dense_baseline() and twin.optimizer == replace(recipe.optimizer, lr=0.125)  # type: ignore[type-var]
    assert twin.stop is None and twin.compare is None
    assert (
        replace(twin, model=recipe.model, optimizer=recipe.optimizer, stop=recipe.stop, compare=recipe.compare)
        == recipe
    )
    own: Any = dense_recipe(load("deepseek_v3", ["compare={}"]))
    assert own.optimizer == recipe.optimizer


@dataclass(frozen=True, kw_only=True)
class Rateless(OptimizerSpec):
    """An optimizer that finds its own rate."""


def test_an_optimizer_without_a_rate_has_none_to_set() -> None:
    recipe = replace(load("deepseek_v3", ["compare={lr: 0.125}"]), optimizer=Rateless())
    with pytest.raises(SpecError, match=re.escape("the optimizer has no option 'lr' to set\n  at compare.lr")):
        dense_recipe(recipe)
