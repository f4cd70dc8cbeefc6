"""Building models: the same weights whatever the state of torch; the recipe of the dense baseline."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from moekit import SpecError, load
from moekit.spec.kinds import OptimizerSpec
from moekit.training.build import build_model, dense_recipe


def test_a_model_is_initialised_in_fp32_under_its_seed_without_side_effects(
    recipe: Callable[..., dict[str, Any]],
) -> None:
    spec = load(recipe())
    expected = build_model(spec).state_dict()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        again = build_model(spec).state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]) for name, tensor in again.items()
    )


STOP = ["stop={metric: train/loss, below: 1.0}", "compare={lr: 0.125}"]


def test_the_dense_recipe_differs_only_in_model_rate_and_stop() -> None:
    """A dense model that stopped early could not be compared over the whole run."""
    recipe = load("deepseek_v3", STOP)
    assert recipe.stop is not None
    dense: Any = dense_recipe(recipe)
    assert dense.model == recipe.model.dense_baseline() and dense.optimizer == replace(recipe.optimizer, lr=0.125)  # type: ignore[type-var]
    assert dense.stop is None and dense.compare is None
    assert (
        replace(dense, model=recipe.model, optimizer=recipe.optimizer, stop=recipe.stop, compare=recipe.compare)
        == recipe
    )
    same: Any = dense_recipe(load("deepseek_v3", ["compare={}"]))
    assert same.optimizer == recipe.optimizer


class Rateless(OptimizerSpec):
    """An optimizer that finds its own rate."""

    takes_shards: ClassVar[bool] = True


def test_compare_lr_is_rejected_for_an_optimizer_without_lr() -> None:
    recipe = replace(load("deepseek_v3", ["compare={lr: 0.125}"]), optimizer=Rateless())
    with pytest.raises(SpecError, match=re.escape("the optimizer has no option 'lr' to set\n  at compare.lr")):
        dense_recipe(recipe)
