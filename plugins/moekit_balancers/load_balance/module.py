"""The f·P loss in four scopes. Oracle: ``naive.py`` beside this file."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.distributed import is_distributed
from moekit.routing import Routing, TokenChoice
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.statistics import count_BE, mean_score_BE, share_of


class LoadBalanceLoss(Balancer):
    """``E · sum_e f_e P_e``: f_e is the share of all choices that fell on e, P_e the mean affinity of e.

    Source, and which setting is whose:

    ============================  ========================================================================
    Switch 2021, eq. 4 to 6       the defaults (K = 1: every choice is a first one)
    GShard 2020, algorithm 1      ``count=first``; a group is one pass, or a sequence (``scope=sequence``)
    GLaM 2021                     as GShard
    ST-MoE 2022                   ``count=first``
    DeepSeekMoE 2024, eq. 12-14   the defaults; weight 1e-3 to 1e-2
    DeepSeek-V2 2024, eq. 23-25   ``scope=sequence``; weight 3e-3
    Wang et al. 2024, baseline    ``normalize=false`` on sigmoids; weight 1e-3
    OLMoE 2024                    the defaults (its library also divides the weight by the number of layers)
    Qwen 2025 (global batch)      ``scope=global_batch``; weight 1e-3
    ============================  ========================================================================

    Constants differ, and a weight means nothing without them. GShard prints ``(1/E) sum_e (c_e/S) m_e``, 1/E² at
    balance; its code multiplies by E², and so does this loss: for the printed loss, divide the weight by E².
    Mixtral's implementation in transformers does not divide by K, and gives K at balance: multiply the weight by K.

    Value: 1 at perfect balance, for any K and E (with ``normalize=false``: E times the mean affinity). It is no lower
    bound: a loss below 1 is possible. E when one expert takes all, with all affinity.

    f is a constant: the gradient flows through P alone, and P is over all experts. f counts choices before capacity,
    and only those that the router sends (``TokenChoice.sent_TK``). The first choice is the routing's first column.
    Padding counts in neither. ``normalize`` divides a token's affinities by their sum before P is taken.

    Scopes, and what accumulation does to them. Each value is a mean over tokens, to be weighted by them. Under all
    scopes but ``global_batch`` k micro-batches come to the same on one rank or dealt to several, whoever holds the
    experts:
        sequence: f and P of each sequence, averaged with the sequence's number of valid tokens as its weight (all
            alike where there is no padding). Unchanged by accumulation that keeps sequences whole.
        micro_batch: f of the tokens of one pass on one rank. Under accumulation or data parallelism this is another
            loss than that of the whole batch: k micro-batches do not equal one batch.
        global_batch: f over all ranks of this pass (in training, where ``torch.distributed`` is initialised), P local.
            R ranks equal one rank with all tokens, however many each has. Micro-batches of an accumulated step still
            differ from one batch, and so do R ranks from R micro-batches of one.
        step: f of the previous optimizer step's whole batch; uniform before the first. As with ``sequence``, k
            micro-batches on any ranks equal one big batch exactly; f is of all its tokens.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). State: ``share_E`` under ``step``.

    Args:
        spec: its options.
        dims: E.
    """

    share_E: Tensor

    def __init__(self, spec: LoadBalance, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        if spec.scope == "step":
            E = dims.num_experts
            self.register_buffer("share_E", torch.full((E,), 1 / E, dtype=torch.float32))

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass."""
        assert isinstance(routing, TokenChoice)
        num_units = context.num_sequences if self.spec.scope == "sequence" else 1
        scores_TE = routing.scores_TE
        P_BE = mean_score_BE(scores_TE, routing.valid_T, num_units, normalize=self.spec.normalize)
        share_BE = self._share(routing, num_units, context).to(scores_TE.dtype)
        return LossTerm(value=routing.num_experts * (share_BE * P_BE).sum(), weight=self.spec.weight)

    def _share(self, routing: TokenChoice, num_units: int, context: BalanceContext) -> Tensor:
        """f of each unit, ``[B, E]`` or ``[E]``."""
        if self.spec.scope == "step":
            return self.share_E.clone()  # the buffer moves in step(); what backward reads must not
        expert_TK, counts_TK = routing.expert_TK, routing.counts_TK()
        if self.spec.count == "first":
            expert_TK, counts_TK = expert_TK[:, :1], None if counts_TK is None else counts_TK[:, :1]
        counts = count_BE(expert_TK, routing.num_experts, counts_TK, num_units)
        if self.spec.scope == "global_batch" and context.training and is_distributed():
            dist.all_reduce(counts)
        return share_of(counts, routing.scores_TE.dtype)

    @torch.no_grad()
    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Remembers the load's shares, for the scope ``step``; a load of no tokens leaves them."""
        if self.spec.scope == "step":
            load_E = load_E.to(self.share_E.device)
            share_E = load_E / load_E.sum().clamp(min=1)
            self.share_E.copy_(share_E.where(load_E.sum() > 0, self.share_E))
