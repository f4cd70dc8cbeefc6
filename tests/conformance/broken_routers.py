"""Routers with one fault each, by the check that must catch it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from healthy_layers import Pick, PickRouter, PickUnbiased, component
from torch import Tensor

from moekit import Component, Routing, TokenChoice
from moekit.spec.kinds import Form


def altered(routing: Routing, kind: type[TokenChoice] = TokenChoice, **changes: object) -> Routing:
    """The routing with some fields replaced."""
    return kind(**({f.name: getattr(routing, f.name) for f in fields(routing)} | changes))


class Turned(PickRouter):
    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        routing = super().forward(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E)
        return altered(routing, logits_TE=routing.logits_TE.T)


class OneGate(PickRouter):
    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return super().gate(scores_TE, biased_TE, expert_TK)[:, :1]


class CountsFromOne(PickRouter):
    def choose(self, biased_TE: Tensor) -> Tensor:
        return super().choose(biased_TE) + 1

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return super().gate(scores_TE, biased_TE, expert_TK - 1)


class LosesMask(PickRouter):
    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        return super().forward(x_TD, selection_bias_E=selection_bias_E)


@dataclass(frozen=True, kw_only=True)
class ClaimsSoft(Pick):
    form: ClassVar[Form] = "soft"


@dataclass(frozen=True, kw_only=True)
class ClaimsAll(Pick):
    def active(self, num_experts: int) -> float:
        return num_experts


class NeedsTokens(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return super().clean(x_TD, valid_T) / x_TD.abs().amax()


class NeedsTwoTokens(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        x_TD = super().clean(x_TD, valid_T)
        return (x_TD - x_TD.mean(0)) / (x_TD.var(0, correction=0).sqrt())


class LowPrecision(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD, self.w_ED.to(x_TD.dtype))


class ScoresInInputType(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD).to(x_TD.dtype).to(torch.promote_types(x_TD.dtype, torch.float32))


class MakesTensorsOnCpu(PickRouter):
    def score(self, logits_TE: Tensor) -> Tensor:
        return super().score(logits_TE) + torch.zeros(logits_TE.shape[1])


class SameTwice(PickRouter):
    def choose(self, biased_TE: Tensor) -> Tensor:
        return super().choose(biased_TE)[:, :1].expand(-1, self.spec.top_k)


class SameTwiceOnTies(PickRouter):
    def choose(self, biased_TE: Tensor) -> Tensor:
        top_TK = biased_TE.detach().topk(self.spec.top_k, dim=1).values
        return (biased_TE[:, None, :] == top_TK[:, :, None]).int().argmax(2)


class CountsPadding(TokenChoice):
    def load_E(self) -> Tensor:
        return torch.bincount(self.expert_TK.flatten(), minlength=self.num_experts)


class FloatLoad(TokenChoice):
    def load_E(self) -> Tensor:
        return super().load_E().float()


class LoadOfPadding(PickRouter):
    kind: ClassVar[type[TokenChoice]] = CountsPadding

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        return altered(super().forward(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E), self.kind)


class LoadInFloats(LoadOfPadding):
    kind = FloatLoad


class Centred(PickRouter):
    """Subtracts the mean over tokens: it looks at padding and at later tokens."""

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return super().clean(x_TD - x_TD.mean(0), valid_T)


class ReadsPadding(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD


class MasksGates(PickRouter):
    """Masks what comes out instead of what goes in: in backward 0 times NaN is NaN."""

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        routing = super().forward(x_TD, selection_bias_E=selection_bias_E)
        assert isinstance(routing, TokenChoice)
        gate_TK = routing.gate_TK if valid_T is None else routing.gate_TK.where(valid_T[:, None], 0.0)
        return altered(routing, gate_TK=gate_TK, valid_T=valid_T)


class DividesByNothing(PickRouter):
    def score(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.sigmoid()

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        gate_TK = super().gate(scores_TE, biased_TE, expert_TK)
        return gate_TK / gate_TK.sum(1, keepdim=True)


class BareExponentials(PickRouter):
    def score(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.exp() / logits_TE.exp().sum(1, keepdim=True)


class BiasInGate(PickRouter):
    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return biased_TE.gather(1, expert_TK)


class BiasTrained(PickRouter):
    """Takes the bias out of the value of the gate again, but leaves its gradient."""

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return (scores_TE + biased_TE - biased_TE.detach()).gather(1, expert_TK)


class BiasUnheard(PickRouter):
    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        return super().forward(x_TD, valid_T=valid_T)


class CapacityByLength(PickRouter):
    """Sharpens with the number of tokens: earlier tokens depend on how many follow."""

    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) * x_TD.shape[0]


BROKEN: dict[str, list[Component]] = {
    "check_shapes": [component(Pick, Turned), component(Pick, OneGate), component(Pick, CountsFromOne)],
    "check_form": [component(ClaimsSoft, PickRouter), component(Pick, LosesMask)],
    "check_active": [component(ClaimsAll, PickRouter)],
    "check_any_number_of_tokens": [component(Pick, NeedsTokens), component(Pick, NeedsTwoTokens)],
    "check_fp32_arithmetic": [component(Pick, LowPrecision), component(Pick, ScoresInInputType)],
    "check_device": [component(Pick, MakesTensorsOnCpu)],
    "check_choices_distinct": [component(Pick, SameTwice), component(Pick, SameTwiceOnTies)],
    "check_load_counts": [component(Pick, LoadOfPadding), component(Pick, LoadInFloats), component(Pick, SameTwice)],
    "check_padding": [component(Pick, Centred)],
    "check_padding_nan": [component(Pick, Centred), component(Pick, MasksGates), component(Pick, ReadsPadding)],
    "check_extreme_logits": [component(Pick, DividesByNothing), component(Pick, BareExponentials)],
    "check_nan_stays_with_its_token": [component(Pick, Centred)],
    "check_bias_chooses_only": [
        component(Pick, BiasInGate),
        component(Pick, BiasTrained),
        component(Pick, BiasUnheard),
    ],
    "check_bias_is_ignored": [component(PickUnbiased, PickRouter)],
    "check_causal": [component(Pick, Centred), component(Pick, CapacityByLength)],
}
