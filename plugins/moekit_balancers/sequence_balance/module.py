"""The complementary sequence-wise loss of DeepSeek-V3. Reference implementation: ``naive.py``."""

from __future__ import annotations

from dataclasses import replace

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.router_math import first_top_k
from moekit.routing import Routing, token_choice_of
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.shares import mean_score_BE, share_of


class SequenceBalanceLoss(Balancer):
    """``sum_e f_e P_e`` of each sequence: ``f_e = E/(K T) · count_e``, ``P_e`` the mean of ``s_te / sum_j s_tj``.

    Source: DeepSeek-V3 2024, eq. 17 to 20. There f counts the K experts of highest affinity, without the selection
    bias (``count=affinity``); ``count=routed`` counts the experts that the router chose (by bias and groups too).

    Value: 1 at perfect balance, for any K and E; this is not a lower bound. Each sequence is weighted by its number of
    valid tokens, so the value is a mean over tokens: micro-batches or ranks that keep sequences whole give the loss of
    the whole batch.

    Gradient: flows through P alone; f is a constant, counted before capacity drops.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.
    """

    def __init__(self, spec: SequenceBalance, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass.

        Raises:
            MoekitError: the routing is not by token choice.
        """
        routing = token_choice_of(routing, "balancer 'sequence_balance'")
        B, counted = context.num_sequences, routing
        if self.spec.count == "affinity":
            best_TK = first_top_k(routing.scores_TE, routing.expert_TK.shape[1])
            counted = replace(routing, expert_TK=best_TK, sent_TK=None)
        P_BE = mean_score_BE(routing, B, normalize=True)
        share_BE = share_of(counted.load_BE(B), P_BE.dtype)
        return LossTerm(value=routing.num_experts * (share_BE * P_BE).sum(), weight=self.spec.weight)
