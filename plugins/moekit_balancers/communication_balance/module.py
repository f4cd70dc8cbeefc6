"""The communication balance loss. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.errors import MoekitError
from moekit.routing import Routing, token_choice_of
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.devices import uneven_devices
from moekit_balancers.shares import mean_score_BE


class CommunicationBalanceLoss(Balancer):
    """``sum_i f_i P_i`` over G devices, of each sequence: ``f_i = G/(M T) · (tokens sent to device i)``.

    A token counts once per device, however many of the device's experts it uses, because it is sent there once.
    ``P_i`` is the sum over the device's experts of the mean of ``s_te / sum_j s_tj``. Expert e is on device
    ``e // (E/G)``.

    Source: DeepSeek-V2 2024, eq. 29 to 31. M is ``top_groups``, the limit of its device-limited routing, which bounds
    what a device sends; this loss balances what it receives.

    Value: under uniform affinities, the mean number of devices that a token uses, divided by M: 1 if every token uses
    exactly M devices, else below 1. It is G/M when all tokens and all affinity go to one device. So there is no fixed
    value at balance.

    Each sequence is weighted by its number of valid tokens, so micro-batches or ranks that keep sequences whole give
    the loss of the whole batch.

    Gradient: flows through P alone; f is a constant, counted before capacity drops. Padding and choices that are not
    sent are excluded.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.

    Raises:
        MoekitError: ``groups`` does not divide E.
    """

    def __init__(self, spec: CommunicationBalance, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(uneven_devices(spec.groups, dims.num_experts)):
            raise MoekitError("balancer communication_balance: " + "; ".join(problems))
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass.

        Raises:
            MoekitError: the routing is not by token choice.
        """
        routing = token_choice_of(routing, "balancer 'communication_balance'")
        G, M, B, T = self.spec.groups, self.spec.top_groups, context.num_sequences, routing.expert_TK.shape[0]
        P_BG = torch.unflatten(mean_score_BE(routing, B, normalize=True), 1, (G, -1)).sum(-1)
        device_TK, counts_TK = routing.expert_TK // (routing.num_experts // G), routing.counts_TK()
        one_TK = torch.ones_like(device_TK) if counts_TK is None else counts_TK.long()
        uses_TG = device_TK.new_zeros(T, G).scatter_add(1, device_TK, one_TK).clamp(max=1)
        valid_T = uses_TG.new_ones(T) if routing.valid_T is None else routing.valid_T
        received_BG = uses_TG.reshape(B, T // max(B, 1), G).sum(1)
        valid_B1 = valid_T.reshape(B, T // max(B, 1)).sum(1, keepdim=True)
        share_BG = received_BG.to(P_BG.dtype) / valid_B1.clamp(min=1)
        return LossTerm(value=G / M * (share_BG * P_BG).sum(), weight=self.spec.weight)
