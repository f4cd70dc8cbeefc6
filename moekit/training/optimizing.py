"""What moves the weights: a recipe's optimizer and its schedule, as Lightning takes them."""

from __future__ import annotations

from typing import Any

import torch

from moekit.contracts import Model
from moekit.registry import build
from moekit.spec.recipe import Recipe


def optimizer_of(recipe: Recipe, model: Model, steps: int) -> Any:
    """The recipe's optimizer; with its schedule, where there is one, to be stepped once per optimizer step.

    Args:
        recipe: has an optimizer.
        model: whose parameters move.
        steps: length of the run.
    """
    optimizer = build(recipe.optimizer, model)  # type: ignore[arg-type]
    if recipe.schedule is None:
        return optimizer
    factor = build(recipe.schedule, steps)
    # A plain function: torch keeps none of it in the scheduler's state.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(factor(step)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
