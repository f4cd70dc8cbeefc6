"""Lightning's ``DDPStrategy``, from a recipe's options."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy

from moekit.spec.recipe import Recipe
from moekit_lightning.ddp import DDP


def ddp(spec: DDP, recipe: Recipe) -> DDPStrategy:
    """The strategy."""
    return DDPStrategy(
        find_unused_parameters=spec.find_unused_parameters,
        static_graph=spec.static_graph,
        gradient_as_bucket_view=spec.gradient_as_bucket_view,
        timeout=timedelta(seconds=spec.timeout),
    )
