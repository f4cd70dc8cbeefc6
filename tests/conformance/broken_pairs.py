"""Models of pairs with one fault each, by the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from healthy_layers import component
from healthy_pairs import Echo, EchoModel
from torch import Tensor

from moekit import Batch, Component, ModelOutput, Source


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


BROKEN: dict[str, list[Component]] = {
    "check_source_read": [component(Echo, Deaf)],
    "check_source_padding": [
        component(Echo, MeanOverPadding),
        component(Echo, RoutesPadding),
        component(Echo, StrangeName),
    ],
    "check_given_source": [component(Echo, OtherSource)],
}
