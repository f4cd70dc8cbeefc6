"""The f·P loss in four scopes. Reference implementation: ``naive.py``."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.distributed import is_distributed
from moekit.routing import Routing, TokenChoice, token_choice_of
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.shares import mean_score_BE, share_of


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

    Implementations differ by constant factors, so weights must be converted. GShard prints
    ``(1/E) sum_e (c_e/S) m_e``, which is 1/E² at balance; its code multiplies by E², as this loss does: for the printed
    loss, divide the weight by E². Mixtral's implementation in transformers does not divide by K and is K at balance:
    multiply the weight by K.

    Value: 1 at perfect balance, for any K and E (with ``normalize=false``: E times the mean affinity). Not a lower
    bound: a loss below 1 is possible. It is E when one expert takes all tokens with all affinity.

    f is a constant: the gradient flows through P alone, and P covers all experts. f counts choices before capacity
    drops, and only those that the router sends (``TokenChoice.sent_TK``). The first choice is the routing's first
    column. Padding is excluded from both. ``normalize`` divides a token's affinities by their sum before P is taken.

    Scopes, and gradient accumulation. Each value is a mean over tokens, so micro-batches must be weighted by their
    tokens. In all scopes but ``global_batch`` it does not matter which ranks compute the k micro-batches:
        sequence: f and P of each sequence, averaged with the sequences' numbers of valid tokens as weights.
            Accumulation that keeps sequences whole does not change it.
        micro_batch: f of the tokens of one pass on one rank. Under accumulation or data parallelism this is another
            loss than that of the whole batch: k micro-batches do not equal one batch.
        global_batch: f over all ranks of this pass (in training, where ``torch.distributed`` is initialised), P local.
            R ranks equal one rank with all tokens, however many each has. Micro-batches of an accumulated step still
            differ from one batch, and R ranks differ from R micro-batches of one rank.
        step: f of the previous optimizer step's whole batch; uniform before the first step. As with ``sequence``, k
            micro-batches on any ranks equal one large batch exactly, and f covers all its tokens.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). State: ``share_E`` under ``step``.
    """

    share_E: Tensor

    def __init__(self, spec: LoadBalance, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        if spec.scope == "step":
            E = dims.num_experts
            self.register_buffer("share_E", torch.full((E,), 1 / E, dtype=torch.float32))

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass.

        Raises:
            MoekitError: the routing is not by token choice.
        """
        routing = token_choice_of(routing, "balancer 'load_balance'")
        num_units = context.num_sequences if self.spec.scope == "sequence" else 1
        P_BE = mean_score_BE(routing, num_units, normalize=self.spec.normalize)
        share_BE = self._share(routing, num_units, context).to(P_BE.dtype)
        return LossTerm(value=routing.num_experts * (share_BE * P_BE).sum(), weight=self.spec.weight)

    def _share(self, routing: TokenChoice, num_units: int, context: BalanceContext) -> Tensor:
        """f of each unit (a sequence, or all tokens), ``[B, E]`` or ``[E]``."""
        if self.spec.scope == "step":
            return self.share_E.clone()  # step() changes the buffer, and backward must not see that
        if self.spec.count == "first":
            sent_TK = None if routing.sent_TK is None else routing.sent_TK[:, :1]
            routing = replace(routing, expert_TK=routing.expert_TK[:, :1], sent_TK=sent_TK)
        load_BE = routing.load_BE(num_units)
        if self.spec.scope == "global_batch" and context.training and is_distributed():
            dist.all_reduce(load_BE)
        return share_of(load_BE, routing.scores_TE.dtype)

    @torch.no_grad()
    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Stores the load's shares, for the scope ``step``; a load without tokens changes nothing."""
        if self.spec.scope == "step":
            load_E = load_E.to(self.share_E)
            share_E = load_E / load_E.sum().clamp(min=1)
            self.share_E.copy_(share_E.where(load_E.sum() > 0, self.share_E))
