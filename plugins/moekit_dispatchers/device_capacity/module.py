"""Dropping by device, before another dispatcher. Reference implementation: ``naive.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, final

import torch
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.registry import build
from moekit.routing import Routing, TokenChoice, lost_tokens, token_choice_of
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.queues import affinities, as_fraction, length, places


@final
class DeviceCapacityDispatcher(Dispatcher):
    """In training, each of G devices keeps its ``factor · n / G`` pairs of highest affinity, n being all that are sent.

    Source: DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.2.4. Tokens of exempt sequences keep every pair
    and use up the budget first. Each layer samples its own exempt sequences, independently of each other. Dropped pairs
    are no longer sent (``sent_TK``); no gate is rescaled. In evaluation the routing is passed on unchanged.

    Shapes are static and nothing is read on the host.

    Raises:
        ValueError: the routing is not by token choice; G does not divide E; ``num_sequences`` does not divide T.
    """

    def __init__(self, spec: DeviceCapacity, dims: LayerDims) -> None:
        super().__init__()
        for conflict in spec.check_experts(dims.num_experts):
            raise ValueError(conflict)
        self.spec = spec
        self.num_groups, self.exempt, self.budget = spec.groups, spec.exempt, spec.budget
        self.factor = as_fraction(1.0 if spec.factor is None else spec.factor)
        self.inner = cast(Dispatcher, build(spec.inner, dims))

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Drops pairs in training; the inner dispatcher takes the rest, and its drops are added."""
        kept, dropped = self.drop(routing, num_sequences)
        out = self.inner(x_TD, kept, experts, num_sequences=num_sequences)
        lost = lost_tokens(routing, kept)
        if out.dropped_tokens is not None:
            lost = lost + out.dropped_tokens
        return cast(Dispatched, replace(out, dropped=out.dropped + dropped, dropped_tokens=lost))

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """The pairs within the devices' budgets and within the inner dispatcher's limits."""
        kept, dropped = self.drop(routing, num_sequences)
        kept, more = self.inner.limit(kept, num_sequences)
        return kept, dropped + more

    def drop(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """The routing within the devices' budgets, and how many pairs it dropped: none in evaluation."""
        routing = token_choice_of(routing, "dispatcher 'device_capacity'")
        if not self.training:
            return super().limit(routing, num_sequences)
        counts_TK = routing.counts_TK()
        if counts_TK is None:
            counts_TK = torch.ones_like(routing.expert_TK, dtype=torch.bool)
        kept_TK = counts_TK & self.keep(routing, counts_TK, num_sequences)
        return replace(routing, sent_TK=kept_TK), (counts_TK & ~kept_TK).sum()

    def keep(self, routing: TokenChoice, counts_TK: Tensor, num_sequences: int) -> Tensor:
        """bool ``keep_TK``: the pairs within their device's budget, and those of exempt sequences."""
        G = self.num_groups
        device_TK = (routing.expert_TK // (routing.num_experts // G)).where(counts_TK, G)
        affinity_TK = affinities(routing)
        exempt_T1 = self.sample_exempt(counts_TK, num_sequences)
        if exempt_T1 is not None:
            affinity_TK = affinity_TK.masked_fill(exempt_T1 & counts_TK, torch.inf)
        queue_1N = affinity_TK.reshape(1, -1).argsort(dim=1, descending=True, stable=True)
        place_TK = places(device_TK.reshape(1, -1), queue_1N, G).reshape(device_TK.shape)
        above, below = self.factor
        budget = counts_TK.sum() * above // (below * G) if self.budget is None else self.budget
        keep_TK = place_TK < budget
        return keep_TK if exempt_T1 is None else keep_TK | exempt_T1

    def sample_exempt(self, counts_TK: Tensor, num_sequences: int) -> Tensor | None:
        """bool ``[T, 1]``: tokens of exempt sequences, sampled on the tokens' device; None without exemption."""
        T = counts_TK.shape[0]
        if not self.exempt or not T:
            return None
        S = length(T, num_sequences)
        exempt_B = torch.rand(num_sequences, dtype=torch.float32, device=counts_TK.device) < self.exempt
        return exempt_B.repeat_interleave(S, output_size=T)[:, None]

    def extra_repr(self) -> str:
        """Options, for ``print(model)``."""
        above, below = self.factor
        size = f"factor={above / below:g}" if self.budget is None else f"budget={self.budget}"
        return f"groups={self.num_groups}, {size}, exempt={self.exempt}"
