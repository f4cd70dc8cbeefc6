"""What a Lightning strategy needs that trains a recipe's model in shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from moekit.contracts import Model
from moekit.spec.recipe import Recipe


@runtime_checkable
class ShardingStrategy(Protocol):
    """A Lightning strategy that builds a recipe's model in shards. It sums gradients over ranks (DDP averages).

    Its spec claims ``shards``; ``LitMoE`` then builds no model until the strategy is set up.
    """

    def build(self, recipe: Recipe, prepare: Callable[[Model], None]) -> Model:
        """Builds this rank's part of the model, calls ``prepare`` with it, which freezes parameters, and shards it."""

    def check_ranks(self, recipe: Recipe, ranks: int) -> None:
        """Checks that ``ranks`` ranks can train the recipe, before anything is written.

        Raises:
            SpecError: they cannot.
        """
