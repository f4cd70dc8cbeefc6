"""Routers with one fault each, by the check that must catch it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from healthy import (
    NoisyPick,
    NoisyPickRouter,
    Pick,
    PickByToken,
    PickByTokenRouter,
    PickRouter,
    PickUnbiased,
    components,
)
from torch import Tensor

from moekit import Component, LossTerm, Routing, TokenChoice
from moekit.spec.kinds import Form


class Turned(PickRouter):
    def routing(self, routing: TokenChoice) -> Routing:
        return replace(routing, logits_TE=routing.logits_TE.T)


class OneGate(PickRouter):
    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return super().gate(scores_TE, biased_TE, expert_TK)[:, :1]


class CountsFromOne(PickRouter):
    def choose(self, biased_TE: Tensor) -> Tensor:
        return super().choose(biased_TE) + 1

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return super().gate(scores_TE, biased_TE, expert_TK - 1)


class LosesMask(PickRouter):
    def routing(self, routing: TokenChoice) -> Routing:
        return replace(routing, valid_T=None)


class AllTokensAlike(PickByTokenRouter):
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        first_T = None if token_T is None else torch.zeros_like(token_T)
        return super().forward(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E, token_T=first_T)


class ReadsTokensIfGiven(PickByTokenRouter):
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        token_T = torch.zeros(len(x_TD), dtype=torch.int64, device=x_TD.device) if token_T is None else token_T
        return super().forward(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E, token_T=token_T)


class ClaimsSoft(Pick):
    form: ClassVar[Form] = "soft"


class ClaimsAll(Pick):
    def active(self, num_experts: int) -> float:
        return num_experts


class ClaimsToListAll(Pick):
    lists_all: ClassVar[bool] = True


class ListsAll(PickRouter):
    def choose(self, biased_TE: Tensor) -> Tensor:
        return biased_TE.detach().argsort(1, descending=True)

    def routing(self, routing: TokenChoice) -> Routing:
        return replace(routing, sent_TK=torch.arange(routing.expert_TK.shape[1]) < self.spec.top_k)


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

    def routing(self, routing: TokenChoice) -> Routing:
        return self.kind(**vars(routing))


class LoadInFloats(LoadOfPadding):
    kind = FloatLoad


class Centred(PickRouter):
    """Subtracts the mean over tokens, and so depends on padding and on later tokens."""

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return super().clean(x_TD - x_TD.mean(0), valid_T)


class ReadsPadding(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD


class MasksGates(PickRouter):
    """Masks the output instead of the input: in backward 0 times NaN is NaN."""

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD

    def routing(self, routing: TokenChoice) -> Routing:
        valid_T, gate_TK = routing.valid_T, routing.gate_TK
        return routing if valid_T is None else replace(routing, gate_TK=gate_TK.where(valid_T[:, None], 0.0))


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
    """Removes the bias from the gate's value, but not from its gradient."""

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return (scores_TE + biased_TE - biased_TE.detach()).gather(1, expert_TK)


class BiasUnheard(PickRouter):
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        return super().forward(x_TD, valid_T=valid_T)


class CapacityByLength(PickRouter):
    """Scales logits by the number of tokens, so that earlier tokens depend on how many follow."""

    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) * x_TD.shape[0]


class ReadsNoise(NoisyPickRouter):
    def noisy(self, logits_TE: Tensor) -> Tensor:
        noisy_TE = super().noisy(logits_TE)
        return noisy_TE if noisy_TE.max().item() < 1e4 else logits_TE


class LossOfOneElement(NoisyPickRouter):
    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        return replace(super().own_loss(logits_TE, valid_T1), value=self.level.square())


class LossWithPadding(NoisyPickRouter):
    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        return super().own_loss(logits_TE, torch.ones_like(valid_T1))

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD.nan_to_num(nan=7.0)


class LossWithoutGradient(NoisyPickRouter):
    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        term = super().own_loss(logits_TE, valid_T1)
        return replace(term, value=term.value.detach())


class LossInBf16(NoisyPickRouter):
    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        term = super().own_loss(logits_TE, valid_T1)
        return replace(term, value=term.value.to(self.level.dtype))


class NoLoad(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return None


class MeanLoad(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        load_E = super().smooth(chance_TE, valid_T1)
        return None if load_E is None else load_E / chance_TE.shape[0]


class LoadWithPadding(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return super().smooth(chance_TE, torch.ones_like(valid_T1))


class LoadOfTheNext(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return super().smooth(chance_TE.roll(1, 1), valid_T1)


class LoadWithoutGradient(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return super().smooth(chance_TE.detach(), valid_T1)


class LoadInEval(NoisyPickRouter):
    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return (chance_TE * valid_T1).sum(0)


BROKEN: dict[str, list[Component]] = {
    "check_shapes": components(Pick, Turned, OneGate, CountsFromOne),
    "check_form": [*components(ClaimsSoft, PickRouter), *components(Pick, LosesMask)],
    "check_active": components(ClaimsAll, PickRouter),
    "check_lists_all": [*components(ClaimsToListAll, PickRouter), *components(Pick, ListsAll)],
    "check_any_number_of_tokens": components(Pick, NeedsTokens, NeedsTwoTokens),
    "check_fp32_arithmetic": components(Pick, LowPrecision, ScoresInInputType),
    "check_device": components(Pick, MakesTensorsOnCpu),
    "check_choices_distinct": components(Pick, SameTwice, SameTwiceOnTies),
    "check_load_counts": components(Pick, LoadOfPadding, LoadInFloats, SameTwice),
    "check_padding": components(Pick, Centred),
    "check_padding_nan": components(Pick, Centred, MasksGates, ReadsPadding),
    "check_extreme_logits": components(Pick, DividesByNothing, BareExponentials),
    "check_nan_stays_with_its_token": components(Pick, Centred),
    "check_bias_chooses_only": components(Pick, BiasInGate, BiasTrained, BiasUnheard),
    "check_bias_is_ignored": components(PickUnbiased, PickRouter),
    "check_causal": components(Pick, Centred, CapacityByLength),
    "check_compile_in_training": components(NoisyPick, ReadsNoise),
    "check_own_loss": components(NoisyPick, LossOfOneElement, LossWithPadding, LossWithoutGradient, LossInBf16),
    "check_smooth_load": components(
        NoisyPick, NoLoad, MeanLoad, LoadWithPadding, LoadOfTheNext, LoadWithoutGradient, LoadInEval, PickRouter
    ),
    "check_no_smooth_load": components(Pick, NoisyPickRouter),
    "check_reads_tokens": components(PickByToken, PickRouter, AllTokensAlike),
    "check_ignores_tokens": components(Pick, ReadsTokensIfGiven),
}
