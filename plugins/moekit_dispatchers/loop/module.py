"""The loop dispatcher."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import LoopGroups
from moekit.routing import Routing, pairs_of
from moekit_dispatchers.loop import Loop


@final
class LoopDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, as plainly as it can be written.

    For tests and for reading, not for GPUs or ``torch.compile``: it reads the routing on the host.

    Raises:
        ValueError: a soft routing.
    """

    def __init__(self, spec: Loop, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Collects each expert's tokens, runs the experts, adds each output to its token."""
        pairs = pairs_of(routing)
        # Pairs that go nowhere have expert E, which this loop does not reach.
        of_expert = [(pairs.expert_N == e).nonzero().squeeze(1) for e in range(routing.num_experts)]
        pair_N = torch.cat(of_expert)
        token_N = pairs.token_N[pair_N]
        out_NO = experts(x_TD[token_N], LoopGroups([len(pair) for pair in of_expert]))

        gated_NO = pairs.gate_N[pair_N][:, None] * out_NO  # in the wider of the two dtypes
        y_TO = gated_NO.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, gated_NO)
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=token_N.new_zeros(()))
