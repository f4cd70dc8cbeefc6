"""The smallest attention and model that keep what they have read; broken ones are these, at fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from healthy_layers import Look, LookAttention
from healthy_training import Tiny, TinyModel
from torch import Tensor

from moekit import Cache, ModelOutput, Source


@dataclass(frozen=True, kw_only=True)
class Recall(Look):
    caches: ClassVar[bool] = True


class RecallAttention(LookAttention):
    """Looks back, at keys and values that it has kept too."""

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        q, k, v = self.qkv(x_BSD).chunk(3, dim=-1)
        k, v = (k, v) if cache is None else self.add(cache, k, v)
        score_BSS = q / 8 @ k.mT
        return self.attend(score_BSS.masked_fill(self.hidden(score_BSS, valid_BS), -torch.inf), v)

    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return cache.extend(k, v)

    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        if not self.causal:
            return super().hidden(score_BSS, valid_BS)
        queries, keys = score_BSS.shape[-2:]
        return torch.ones_like(score_BSS, dtype=torch.bool).triu(self.first(queries, keys) + 1)

    def first(self, queries: int, keys: int) -> int:
        return keys - queries


@dataclass(frozen=True, kw_only=True)
class Sums(Tiny):
    pass


class SumsModel(TinyModel):
    """Keeps the sum of what it has read, and how much that was."""

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        return self.decode(inputs, Cache(), valid=valid)

    def start_cache(self, source: Source | None = None) -> Cache | None:
        return Cache()

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        x_BSD = self.embed(inputs)
        sum_B1D, count = cache.kept or (x_BSD.new_zeros(len(x_BSD), 1, x_BSD.shape[2]), x_BSD.new_zeros(()))
        sum_BSD = sum_B1D + x_BSD.cumsum(1)
        count_S = count + torch.arange(1, x_BSD.shape[1] + 1, device=x_BSD.device)
        self.keep(cache, sum_BSD[:, -1:], count_S[-1])
        y_BSD, report = self.moe(x_BSD + sum_BSD / count_S[:, None], valid=valid)
        return ModelOutput(y=self.head(y_BSD), reports={"moe": report})

    def keep(self, cache: Cache, sum_B1D: Tensor, count: Tensor) -> None:
        cache.kept = (sum_B1D, count)
