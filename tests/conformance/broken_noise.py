"""Routers with a fault in training alone, and dispatchers that carry what is not sent, by the check that catches."""

from __future__ import annotations

from dataclasses import replace

import torch
from healthy_layers import Pick, PickRouter, Walk, WalkDispatcher, component
from healthy_noise import NoisyPick, NoisyPickRouter
from torch import Tensor

from moekit import Component, Dispatched, ExpertBank, LossTerm, Routing, TokenChoice


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


class CarriesUnsent(WalkDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        return super().pairs(x_TD, _all_sent(routing), experts)


class MasksUnsentGates(WalkDispatcher):
    """Carries what is not sent with its gate times 0, which is NaN for a NaN."""

    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        if isinstance(routing, TokenChoice) and routing.sent_TK is not None:
            routing = replace(routing, gate_TK=routing.gate_TK * routing.sent_TK)
        return super().pairs(x_TD, _all_sent(routing), experts)


class DropsUnsent(WalkDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        out = super().pairs(x_TD, routing, experts)
        unsent = 0 if not isinstance(routing, TokenChoice) or routing.sent_TK is None else (~routing.sent_TK).sum()
        return replace(out, dropped=out.dropped + unsent)


def _all_sent(routing: Routing) -> Routing:
    return replace(routing, sent_TK=None) if isinstance(routing, TokenChoice) else routing


BROKEN: dict[str, list[Component]] = {
    "check_compile_in_training": [component(NoisyPick, ReadsNoise)],
    "check_own_loss": [
        component(NoisyPick, LossOfOneElement),
        component(NoisyPick, LossWithPadding),
        component(NoisyPick, LossWithoutGradient),
        component(NoisyPick, LossInBf16),
    ],
    "check_smooth_load": [
        component(NoisyPick, NoLoad),
        component(NoisyPick, MeanLoad),
        component(NoisyPick, LoadWithPadding),
        component(NoisyPick, LoadOfTheNext),
        component(NoisyPick, LoadWithoutGradient),
        component(NoisyPick, LoadInEval),
        component(NoisyPick, PickRouter),
    ],
    "check_no_smooth_load": [component(Pick, NoisyPickRouter)],
    "check_unsent_reaches_nothing": [
        component(Walk, CarriesUnsent),
        component(Walk, MasksUnsentGates),
        component(Walk, DropsUnsent),
    ],
}
