"""Models with one fault each, by the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from healthy import Echo, EchoModel, Sums, SumsModel, Tiny, TinyModel, components
from torch import Tensor, nn

from moekit import Batch, Cache, Component, ModelOutput, Source


class FutureInEval(TinyModel):
    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        out = super().forward(inputs, valid=valid)
        return ModelOutput(y=out.y, reports=out.reports, future=(out.y[:, 1:],))


class OtherName(TinyModel):
    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        out = super().forward(inputs, valid=valid)
        return ModelOutput(y=out.y, reports={"layer": out.reports["moe"]})


class IgnoresMask(TinyModel):
    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        return super().forward(inputs)


class IdlePart(TinyModel):
    def __init__(self, spec: Tiny) -> None:
        super().__init__(spec)
        self.idle = nn.Linear(3, 3)


class StrangeEmbedding(TinyModel):
    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        return nn.Parameter(torch.zeros(3)), self.head.weight


class InMemory(TinyModel):
    def __init__(self, spec: Tiny) -> None:
        super().__init__(spec)
        self.scale = nn.Parameter(torch.ones(8, device="cpu"))


class SeesTheFuture(TinyModel):
    def mix(self, x_BSD: Tensor) -> Tensor:
        return x_BSD + x_BSD.mean(1, keepdim=True)


class Deaf(EchoModel):
    def memory(self, h_BSD: Tensor, source: Source) -> Tensor:
        return 0 * super().memory(h_BSD, source)


class MeanOverPadding(EchoModel):
    def memory(self, h_BSD: Tensor, source: Source) -> Tensor:
        return super().memory(self.embed(source.tokens), Source(source.tokens))


class RoutesPadding(EchoModel):
    def mask(self, source: Source) -> Tensor | None:
        return None


class StrangeName(EchoModel):
    def on(self, batch: Batch) -> ModelOutput:
        return replace(super().on(batch), of_source=frozenset({"reader"}))


class OtherSource(EchoModel):
    def given(self, source: Source) -> Callable[[Tensor, Tensor | None], ModelOutput]:
        return super().given(Source(source.tokens.roll(1, 0), source.valid))


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
    "check_output": components(Tiny, FutureInEval),
    "check_reports": components(Tiny, OtherName),
    "check_model_padding": components(Tiny, IgnoresMask),
    "check_model_trains": components(Tiny, IdlePart),
    "check_parts": components(Tiny, StrangeEmbedding),
    "check_counted_without_memory": components(Tiny, InMemory),
    "check_model_causal": components(Tiny, SeesTheFuture),
    "check_source_read": components(Echo, Deaf),
    "check_source_padding": components(Echo, MeanOverPadding, RoutesPadding, StrangeName),
    "check_given_source": components(Echo, OtherSource),
    "check_model_cache": components(Sums, StartsAgain, CountsFromOne, AnswersLast, OneForAll, AnswersWithout),
}
