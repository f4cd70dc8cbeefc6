"""Attention and models that keep what they have read, with one fault each, by the check that must catch it."""

from __future__ import annotations

from healthy_caches import Recall, RecallAttention, Sums, SumsModel
from healthy_layers import LookAttention, component
from torch import Tensor

from moekit import Cache, Component, ModelOutput


class Forgets(RecallAttention):
    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        cache.extend(k, v)
        return k, v


class HidesEarlier(RecallAttention):
    """A mask as if the new positions stood at the start."""

    def first(self, queries: int, keys: int) -> int:
        return 0


class SeesAllNew(RecallAttention):
    """Right for one new position, wrong for several."""

    def first(self, queries: int, keys: int) -> int:
        return keys if keys > queries else 0


class KeepsItself(RecallAttention):
    """One cache for all texts."""

    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(self, "own"):
            self.own = Cache()
        return self.own.extend(k, v)


class StartsAgain(SumsModel):
    def keep(self, cache: Cache, sum_B1D: Tensor, count: Tensor) -> None:
        return None


class CountsFromOne(SumsModel):
    def keep(self, cache: Cache, sum_B1D: Tensor, count: Tensor) -> None:
        cache.kept = (sum_B1D, 0 * count)


class AnswersLast(SumsModel):
    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        out = super().decode(inputs, cache, valid=valid)
        return ModelOutput(y=out.y[:, -1:], reports=out.reports) if cache.kept and inputs.shape[1] == 3 else out


class OneForAll(SumsModel):
    def start_cache(self, source: object = None) -> Cache | None:
        if not hasattr(self, "own"):
            self.own = Cache()
        return self.own


class AnswersWithout(SumsModel):
    def start_cache(self, source: object = None) -> Cache | None:
        return None


BROKEN: dict[str, list[Component]] = {
    "check_attention_cache": [
        component(Recall, LookAttention),  # claims a cache, and takes none
        component(Recall, Forgets),
        component(Recall, HidesEarlier),
        component(Recall, SeesAllNew),
        component(Recall, KeepsItself),
    ],
    "check_model_cache": [
        component(Sums, StartsAgain),
        component(Sums, CountsFromOne),
        component(Sums, AnswersLast),
        component(Sums, OneForAll),
        component(Sums, AnswersWithout),
    ],
}
