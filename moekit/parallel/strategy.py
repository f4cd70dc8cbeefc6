"""What a Lightning strategy needs that trains a recipe's model in shards."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from moekit.contracts import Model
from moekit.parallel.deferred_init import DeferredInit
from moekit.spec.recipe import Recipe


@runtime_checkable
class ShardingStrategy(Protocol):
    """A Lightning strategy that shards a model which is built for it. It sums gradients over ranks (DDP averages).

    Its spec claims ``shards``; ``LitMoE`` then builds no model until the strategy is set up.
    """

    def per_rank(self, recipe: Recipe) -> Recipe:
        """The recipe that every rank builds, in which a rank may hold only some of the experts."""

    def shard(self, model: Model, deferred_init: DeferredInit | None = None) -> None:
        """Shards a model that was built from ``per_rank``, then initialises what is still on the meta device."""

    def check_ranks(self, recipe: Recipe, ranks: int) -> None:
        """Checks that ``ranks`` ranks can train the recipe, before anything is written.

        Raises:
            SpecError: they cannot.
        """
