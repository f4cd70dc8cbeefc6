"""The complementary sequence-wise loss of DeepSeek-V3. Oracle: ``naive.py`` beside this file."""

from __future__ import annotations

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.router_math import first_top_k
from moekit.routing import Routing, TokenChoice
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.statistics import count_BE, mean_score_BE, share_of


class SequenceBalanceLoss(Balancer):
    """``sum_e f_e P_e`` of each sequence: ``f_e = E/(K T) · count_e``, ``P_e`` the mean of ``s_te / sum_j s_tj``.

    Source: DeepSeek-V3 2024, eq. 17 to 20. There f counts the K experts of highest affinity, without the selection
    bias (``count=affinity``); ``count=routed`` counts the experts that were chosen, bias, groups and all.

    Value: 1 at perfect balance, for any K and E; no lower bound. Sequences are averaged with their number of valid
    tokens as weight: all alike where there is no padding, and a sequence of padding counts nothing. So the value is
    a mean over tokens, and micro-batches that keep sequences whole equal one big batch, as do ranks.

    Gradient: flows through P alone; f is a constant, before capacity.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.

    Args:
        spec: its options.
        dims: not needed; part of how every balancer is built.
    """

    def __init__(self, spec: SequenceBalance, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass."""
        assert isinstance(routing, TokenChoice)
        B, E, scores_TE = context.num_sequences, routing.num_experts, routing.scores_TE
        expert_TK, counts_TK = routing.expert_TK, routing.counts_TK()
        if self.spec.count == "affinity":
            expert_TK = first_top_k(scores_TE, expert_TK.shape[1])
            counts_TK = None if routing.valid_T is None else routing.valid_T[:, None].expand_as(expert_TK)
        share_BE = share_of(count_BE(expert_TK, E, counts_TK, B), scores_TE.dtype)
        P_BE = mean_score_BE(scores_TE, routing.valid_T, B, normalize=True)
        return LossTerm(value=E * (share_BE * P_BE).sum(), weight=self.spec.weight)
