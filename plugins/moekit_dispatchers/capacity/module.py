"""The capacity dispatcher. Reference implementation: ``naive.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import UniformGroups
from moekit.routing import Routing, TokenChoice, lost_tokens, token_choice_of
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.queues import affinities, as_fraction, length, places

DEFAULT_FACTOR = 1.25


class Queued(NamedTuple):
    """Pairs in the queues of their experts.

    Attributes:
        sizes: groups of tokens, tokens of each, slots of an expert in each.
        expert_TK: int64, the expert of each pair; E for a pair that goes nowhere.
        place_TK: int64, how many pairs are before it.
        kept_TK: bool, whether it has a slot.
    """

    sizes: tuple[int, int, int]
    expert_TK: Tensor
    place_TK: Tensor
    kept_TK: Tensor

    def dropped(self, num_experts: int) -> Tensor:
        """0-d int64: pairs with an expert but without a slot."""
        return ((self.expert_TK < num_experts) & ~self.kept_TK).sum()


@final
class CapacityDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t that have a slot; dropped pairs give 0.

    Source: Lepikhin et al. 2020, GShard (arXiv 2006.16668), algorithm 1, without its random second expert, which is the
    router's; Fedus et al. 2021, Switch Transformer (arXiv 2101.03961), section 2.2; for the order ``priority`` Riquelme
    et al. 2021, V-MoE (arXiv 2106.05974), section 4.

    A choice that the router does not send takes no slot, as in GShard's code; the listing in the paper counts it.

    Gates are not rescaled when a pair is dropped, and a token whose pairs are all dropped comes out exactly 0.

    All experts run in one batched product over E · G · C rows, G the groups of tokens, empty slots filled with zeros.
    Shapes are static and nothing is read on the host, so a layer compiles into one graph, in any float dtype. Gates
    multiply in the wider of their own and the experts' output dtype; y has the experts' output dtype.

    Raises:
        ValueError: the routing is not by token choice; the tokens do not split into equal groups.
    """

    def __init__(self, spec: Capacity, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.factor = as_fraction(DEFAULT_FACTOR if spec.factor is None else spec.factor)
        self.eval_factor = self.factor if spec.eval_factor is None else as_fraction(spec.eval_factor)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Queues pairs, fills the slots, computes, sums by token."""
        routing = token_choice_of(routing, "dispatcher 'capacity'")
        (T, K), E = routing.expert_TK.shape, routing.num_experts
        queued = self.enqueue(routing, num_sequences)
        (G, S, C), expert_TK, place_TK, kept_TK = queued
        N = E * G * C

        group_T = torch.arange(G, device=x_TD.device).repeat_interleave(S, output_size=T)
        slot_TK = ((expert_TK * G + group_T[:, None]) * C + place_TK).where(kept_TK, N)

        tokens_TK = torch.arange(T, device=x_TD.device)[:, None].expand(T, K)
        token_N = slot_TK.new_full((N + 1,), T).scatter(0, slot_TK.flatten(), tokens_TK.flatten())[:N]
        empty_N = token_N == T
        x_ND = x_TD.index_select(0, token_N.where(~empty_N, 0)).masked_fill(empty_N[:, None], 0)
        out_NO = experts(x_ND, UniformGroups(E, N))

        # Select, never multiply by 0: padding may hold NaN, and a bank may return anything for an empty slot.
        out_TKO = out_NO.index_select(0, slot_TK.where(kept_TK, 0).flatten()).reshape(T, K, experts.out_dim)
        gate_TK = routing.gate_TK.where(kept_TK, 0)
        y_TO = (gate_TK[:, :, None] * out_TKO.where(kept_TK[:, :, None], 0)).sum(1)
        lost = lost_tokens(routing, replace(routing, sent_TK=kept_TK))
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=queued.dropped(E), dropped_tokens=lost)

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """The choices that have a slot."""
        routing = token_choice_of(routing, "dispatcher 'capacity'")
        queued = self.enqueue(routing, num_sequences)
        return replace(routing, sent_TK=queued.kept_TK), queued.dropped(routing.num_experts)

    def enqueue(self, routing: TokenChoice, num_sequences: int) -> Queued:
        """Each pair's place in its expert's queue, and whether it gets a slot."""
        (T, K), E = routing.expert_TK.shape, routing.num_experts
        G, S = self.groups(T, num_sequences)
        C = self.slots(S, K, E)
        counts_TK = routing.counts_TK()
        expert_TK = routing.expert_TK if counts_TK is None else routing.expert_TK.where(counts_TK, E)
        place_TK = places(expert_TK.reshape(G, S * K), self.queue(routing, G, S), E).reshape(T, K)
        return Queued((G, S, C), expert_TK, place_TK, (place_TK < C) & (expert_TK < E))

    def groups(self, num_tokens: int, num_sequences: int) -> tuple[int, int]:
        """G and S: how many groups of how many tokens share slots.

        Raises:
            ValueError: the groups are not of equal size.
        """
        if not num_tokens:
            return 1, 0
        whole = length(num_tokens, num_sequences) if self.spec.per == "sequence" else num_tokens
        size = self.spec.group_size or whole
        if whole % size:
            what = "a sequence" if self.spec.per == "sequence" else "a batch"
            raise ValueError(
                f"group_size={size} does not divide {what} of {whole} tokens; choose a divisor of {whole}, "
                "or remove group_size"
            )
        return num_tokens // size, size

    def slots(self, tokens: int, choices: int, num_experts: int) -> int:
        """C: slots of an expert for each group of ``tokens`` with ``choices`` each."""
        if self.spec.slots is not None:
            return min(self.spec.slots, tokens)
        above, below = self.factor if self.training else self.eval_factor
        above *= tokens * (choices if self.spec.count == "pairs" else 1)
        below *= num_experts
        if self.spec.rounding == "ceil":
            slots = -(-above // below)
        elif self.spec.rounding == "floor":
            slots = above // below
        else:
            slots = (2 * above + below) // (2 * below)
            if (2 * above + below) % (2 * below) == 0 and slots % 2 == 1:
                slots -= 1  # half to even
        slots = max(slots, self.spec.at_least)
        multiple = self.spec.multiple
        return min(-(-slots // multiple) * multiple, tokens)

    def queue(self, routing: TokenChoice, num_groups: int, group_size: int) -> Tensor:
        """``queue_GN``: each group's pairs, N = S · K numbered token by token, in the order in which they get slots."""
        G, S, K = num_groups, group_size, routing.expert_TK.shape[1]
        pair_SK = torch.arange(S * K, device=routing.expert_TK.device).reshape(S, K)
        if self.spec.order == "position":
            return pair_SK.flatten().expand(G, -1)
        if self.spec.order == "choice":
            return pair_SK.T.flatten().expand(G, -1)
        affinity_GSK = affinities(routing).reshape(G, S, K)
        if self.spec.order == "affinity":
            return affinity_GSK.flatten(1).argsort(dim=1, descending=True, stable=True)
        token_GS = affinity_GSK.amax(2).argsort(dim=1, descending=True, stable=True)
        return pair_SK[token_GS].mT.flatten(1)

    def extra_repr(self) -> str:
        """Options, for ``print(model)``."""
        spec = self.spec
        above, below = self.factor
        size = f"factor={above / below:g}" if spec.slots is None else f"slots={spec.slots}"
        return f"{size}, count={spec.count}, order={spec.order}, per={spec.per}"
