"""Experts, dispatchers and attention with one fault each, by the check that must catch it."""

from __future__ import annotations

from dataclasses import replace

import torch
from healthy import (
    Limit,
    LimitDispatcher,
    Look,
    LookAttention,
    Recall,
    RecallAttention,
    Shelf,
    ShelfAttention,
    Tanh,
    TanhBank,
    Walk,
    WalkDispatcher,
    components,
)
from torch import Tensor, nn

from moekit import (
    Cache,
    Component,
    Dispatched,
    ExpertBank,
    Groups,
    LayerDims,
    Routing,
    TokenChoice,
    UniformGroups,
)
from moekit.routing import gates_of
from moekit_testing.fixtures.routings import with_gates


class SameWidth(TanhBank):
    def __init__(self, spec: Tanh, dims: LayerDims) -> None:
        super().__init__(spec, LayerDims(dim=dims.dim, num_experts=dims.num_experts))


class FloatOut(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return super().forward(x_ND, groups).float()


class MixesRows(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return super().forward(x_ND - x_ND.mean(0), groups)


class NextExpert(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return torch.tanh(groups.linear(x_ND, self.w_EOD.roll(1, 0)))


class FirstExpert(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return torch.tanh(groups.linear(x_ND, self.w_EOD[:1].expand_as(self.w_EOD)))


class NeedsRows(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        largest = torch.stack([x.detach().amax() for x in groups.split(x_ND)])
        return super().forward(x_ND, groups) + 0 * largest.sum()


class EqualGroups(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return super().forward(x_ND, groups) * (2.0 if isinstance(groups, UniformGroups) else 1.0)


class OnCpu(TanhBank):
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return super().forward(x_ND, groups) * torch.ones(self.out_dim)


class Weighty(WalkDispatcher):
    def __init__(self, spec: Walk, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.scale = nn.Parameter(torch.ones(()))


class SquaresGates(WalkDispatcher):
    def weigh(self, gate_N: Tensor) -> Tensor:
        return gate_N.square()


class DetachesGates(WalkDispatcher):
    def weigh(self, gate_N: Tensor) -> Tensor:
        return gate_N.detach() + 0 * gate_N


class SaysNothingOfDrops(LimitDispatcher):
    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return 0


class SaysNothingOfLostTokens(LimitDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        return replace(super().pairs(x_TD, routing, experts), dropped_tokens=None)


class MakesUpForDrops(LimitDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        out, sent = super().pairs(x_TD, routing, experts), routing.load_E().sum()
        return replace(out, y_TO=out.y_TO * sent / (sent - out.dropped))


class UnsentTakesPlaces(LimitDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        assert isinstance(routing, TokenChoice) and routing.sent_TK is not None
        queue_N = replace(routing, sent_TK=None).pairs().expert_N
        before_N = torch.stack([(queue_N[:n] == e).sum() for n, e in enumerate(queue_N)])
        found_TK = (before_N < 2).view_as(routing.sent_TK) & routing.sent_TK
        out = super().pairs(x_TD, replace(routing, sent_TK=found_TK), experts)
        return replace(out, dropped=out.dropped + routing.sent_TK.sum() - found_TK.sum())


class CountsPaddingAsDropped(WalkDispatcher):
    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return len(expert_N) - sum(sizes)


class TokensBack(WalkDispatcher):
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        out = super().forward(x_TD, routing, experts)
        return out if len(x_TD) else Dispatched(y_TO=x_TD, dropped=out.dropped)


class FloatSum(WalkDispatcher):
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        out = super().forward(x_TD, routing, experts)
        return Dispatched(y_TO=out.y_TO.float(), dropped=out.dropped)


class ForgetsPadding(WalkDispatcher):
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        unmasked = with_gates(routing, gates_of(routing))
        object.__setattr__(unmasked, "valid_T", None)
        return super().forward(x_TD, unmasked, experts)


class MasksOutput(ForgetsPadding):
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        out = super().forward(x_TD, routing, experts)
        if routing.valid_T is None:
            return out
        return Dispatched(y_TO=out.y_TO * routing.valid_T[:, None], dropped=out.dropped)


class WeighsOutputs(WalkDispatcher):
    def own(self, y_TEO: Tensor, combine_TEP: Tensor) -> Tensor:
        return y_TEO * combine_TEP


class ShortAnswer(LookAttention):
    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None) -> Tensor:
        return super().forward(x_BSD, valid_BS=valid_BS)[:, :-1]


class SeesAll(LookAttention):
    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        return torch.zeros(()).bool()


class SeesItself(LookAttention):
    def attend(self, score_BSS: Tensor, v: Tensor) -> Tensor:
        return v


class MixesSequences(LookAttention):
    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None) -> Tensor:
        return super().forward(x_BSD - x_BSD.mean(0), valid_BS=valid_BS)


class AlwaysCausal(LookAttention):
    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        return torch.ones_like(score_BSS, dtype=torch.bool).triu(1)


class SeesPadding(LookAttention):
    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        return super().hidden(score_BSS, None)


class CarriesUnsent(WalkDispatcher):
    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        return super().pairs(x_TD, _all_sent(routing), experts)


class MasksUnsentGates(WalkDispatcher):
    """Computes unsent choices with their gate times 0, which is NaN if the gate is NaN."""

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


class Forgets(RecallAttention):
    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        cache.extend(k, v)
        return k, v


class HidesEarlier(RecallAttention):
    """Masks as if the new positions were the first ones."""

    def first(self, queries: int, keys: int) -> int:
        return 0


class SeesAllNew(RecallAttention):
    """Correct for one new position, wrong for several."""

    def first(self, queries: int, keys: int) -> int:
        return keys if keys > queries else 0


class KeepsItself(RecallAttention):
    """Uses one cache for all inputs."""

    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if not hasattr(self, "own"):
            self.own = Cache()
        return self.own.extend(k, v)


class JoinsDocuments(ShelfAttention):
    def others(self, document_BS: Tensor) -> Tensor:
        return torch.zeros_like(super().others(document_BS))


class SeesDocumentBefore(ShelfAttention):
    """Takes documents for numbers that count one by one."""

    def others(self, document_BS: Tensor) -> Tensor:
        return (document_BS[:, :, None] - document_BS[:, None]).abs() > 2


class OneRowForAll(ShelfAttention):
    """Masks every sequence by the documents of the first one."""

    def others(self, document_BS: Tensor) -> Tensor:
        return super().others(document_BS[:1])


BROKEN: dict[str, list[Component]] = {
    "check_sizes": components(Tanh, SameWidth),
    "check_dtypes": components(Tanh, FloatOut),
    "check_rows_independent": components(Tanh, MixesRows),
    "check_own_weights": components(Tanh, NextExpert, FirstExpert),
    "check_empty_groups": components(Tanh, NeedsRows),
    "check_groups_agree": components(Tanh, EqualGroups),
    "check_expert_device": components(Tanh, OnCpu),
    "check_no_parameters": components(Walk, Weighty),
    "check_agrees_with_sum": [*components(Walk, SquaresGates, DetachesGates), *components(Limit, MakesUpForDrops)],
    "check_skewed_load": components(Limit, SaysNothingOfDrops),
    "check_dropped_is_counted": [
        *components(Limit, SaysNothingOfDrops),
        *components(Limit, SaysNothingOfLostTokens),
        *components(Walk, CountsPaddingAsDropped),
    ],
    "check_dropless": components(Walk, LimitDispatcher),
    "check_unsent_takes_no_place": components(Limit, UnsentTakesPlaces),
    "check_no_tokens": components(Walk, TokensBack),
    "check_dispatched_dtype": components(Walk, FloatSum),
    "check_padding_comes_out_zero": components(Walk, ForgetsPadding),
    "check_padding_nan_stays_out": components(Walk, MasksOutput),
    "check_expert_outputs": components(Walk, WeighsOutputs),
    "check_attention_shapes": components(Look, ShortAnswer),
    "check_attention_causal": components(Look, SeesAll, SeesItself),
    "check_sequences_apart": components(Look, MixesSequences),
    "check_attention_both_ways": components(Look, AlwaysCausal, SeesPadding),
    "check_unsent_reaches_nothing": components(Walk, CarriesUnsent, MasksUnsentGates, DropsUnsent),
    # LookAttention accepts no cache, contrary to the claim of Recall
    "check_attention_documents": components(Shelf, LookAttention, JoinsDocuments, SeesDocumentBefore, OneRowForAll),
    "check_attention_cache": components(Recall, LookAttention, Forgets, HidesEarlier, SeesAllNew, KeepsItself),
}
