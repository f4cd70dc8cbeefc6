"""The loop dispatcher, and rows grouped by slicing."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit.routing import Routing, pairs_of
from moekit_dispatchers.loop import Loop


@final
class LoopGroups(Groups):
    """Rows of known number for each expert: every product is a Python loop over slices.

    Args:
        sizes: the number of rows of each expert.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.num_experts = len(sizes)
        self.num_rows = sum(sizes)

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, expert by expert."""
        biases = [None] * self.num_experts if b_EH is None else b_EH.unbind()
        parts = zip(self.split(x_ND), w_EHD.unbind(), biases, strict=True)
        return torch.cat([F.linear(x_nD, w_HD, b_H) for x_nD, w_HD, b_H in parts])

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        return torch.cat([p_EX[e].expand(n, *p_EX.shape[1:]) for e, n in enumerate(self.sizes)])

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        return list(torch.split(x_ND, self.sizes))


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
