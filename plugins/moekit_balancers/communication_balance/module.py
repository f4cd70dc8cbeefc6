"""The communication balance loss. Oracle: ``naive.py`` beside this file."""

from __future__ import annotations

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.errors import MoekitError
from moekit.routing import Routing, TokenChoice
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.devices import uneven_devices
from moekit_balancers.statistics import group_sum_BG, mean_score_BE, received_BG, valid_B1


class CommunicationBalanceLoss(Balancer):
    """``sum_i f_i P_i`` over G devices, of each sequence: ``f_i = G/(M T) · (tokens sent to device i)``.

    A token counts once for a device, however many of its experts it uses there: that is what is sent. ``P_i`` is the
    sum over the device's experts of the mean of ``s_te / sum_j s_tj``. Expert e lies on device ``e // (E/G)``.

    Source: DeepSeek-V2 2024, eq. 29 to 31; M is ``top_groups``, the limit of its device-limited routing, which bounds
    what a device sends; this loss evens out what it receives.

    Value: under uniform affinities, the mean number of devices a token uses, over M: 1 if every token uses exactly M,
    below 1 otherwise. G/M when all tokens go to one device alone, with all affinity. So no value at balance is fixed.

    Sequences are averaged with their number of valid tokens as weight, so micro-batches that keep sequences whole
    equal one big batch, as do ranks.

    Gradient: flows through P alone; f is a constant, before capacity. Padding, and choices that are not sent, count
    nowhere.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.

    Args:
        spec: its options.
        dims: E.

    Raises:
        MoekitError: ``groups`` does not divide E.
    """

    def __init__(self, spec: CommunicationBalance, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(uneven_devices(spec.groups, dims.num_experts)):
            raise MoekitError("balancer communication_balance: " + "; ".join(problems))
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass."""
        assert isinstance(routing, TokenChoice)
        G, M, B, T = self.spec.groups, self.spec.top_groups, context.num_sequences, routing.expert_TK.shape[0]
        P_BG = group_sum_BG(mean_score_BE(routing.scores_TE, routing.valid_T, B, normalize=True), G)
        size = routing.num_experts // G
        count_BG = received_BG(routing.expert_TK // size, G, routing.counts_TK(), B)
        reached_BG = count_BG.to(P_BG.dtype) / valid_B1(routing.valid_T, T, B, P_BG.device).clamp(min=1)
        return LossTerm(value=G / M * (reached_BG * P_BG).sum(), weight=self.spec.weight)
