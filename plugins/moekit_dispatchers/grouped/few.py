"""A few pairs on a CPU, when no gradient is wanted: what writing a token takes. Only chosen experts are met.

The grouped product walks all E experts, and sorting back and forth pays for many tokens; for a handful both cost more
than the experts themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatched, ExpertBank
from moekit.contracts.layer import Groups
from moekit.routing import Pairs

MOST_PAIRS = 32
"""Never more than this, nor than half a pair an expert: from there on the grouped product is as fast. (Gathering the
chosen experts' weights for one batched product is slower than both.) Measured: docs/measurements.md, Decoding."""


@final
class ListedGroups(Groups):
    """Rows whose experts are known on the host: every product is one for each expert that has rows.

    Args:
        experts: the expert of each row, ascending.
        num_experts: E.
    """

    def __init__(self, experts: list[int], num_experts: int) -> None:
        self.num_experts = num_experts
        self.num_rows = len(experts)
        self.sizes = [(e, sum(1 for _ in rows)) for e, rows in groupby(experts)]

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, expert by expert, of those that have rows."""
        parts = [F.linear(x_nD, w_EHD[e], None if b_EH is None else b_EH[e]) for e, x_nD in self._rows(x_ND)]
        return torch.cat(parts) if parts else x_ND.new_empty(0, w_EHD.shape[1])

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        parts = [p_EX[e].expand(n, *p_EX.shape[1:]) for e, n in self.sizes]
        return torch.cat(parts) if parts else p_EX[:0]

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        parts = [x_ND[:0]] * self.num_experts
        for e, x_nD in self._rows(x_ND):
            parts[e] = x_nD
        return parts

    def _rows(self, x_ND: Tensor) -> Iterator[tuple[int, Tensor]]:
        sizes = [n for _, n in self.sizes]
        return zip((e for e, _ in self.sizes), torch.split(x_ND, sizes) if sizes else (), strict=True)


def are_few(pairs: Pairs, num_experts: int) -> bool:
    """Whether ``few`` may and should run these: decided by static facts, never by what is in a tensor."""
    N = pairs.expert_N.shape[0]
    plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and N <= min(MOST_PAIRS, num_experts // 2) and pairs.expert_N.device.type == "cpu"


def few(x_TD: Tensor, pairs: Pairs, experts: ExpertBank) -> Dispatched:
    """What the grouped dispatcher gives, for a few pairs; pairs that go nowhere are left out on the host."""
    expert_N, pair_N = pairs.expert_N.sort(stable=True)
    listed = [e for e in expert_N.tolist() if e < experts.num_experts]
    pair_N = pair_N[: len(listed)]
    token_N = pairs.token_N[pair_N]
    out_NO = experts(x_TD[token_N], ListedGroups(listed, experts.num_experts))
    gated_NO = pairs.gate_N[pair_N][:, None] * out_NO  # in the wider of the two dtypes
    y_TO = gated_NO.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, gated_NO)
    return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=pair_N.new_zeros(()))
