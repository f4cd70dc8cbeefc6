"""The grouped dispatcher, and rows that are grouped by offsets on the device."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit.routing import Pairs, Routing, pairs_of
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.few import are_few, few
from moekit_dispatchers.grouped.ops import grouped_linear, sum_rows, take_rows
from moekit_dispatchers.sorting import narrow


@final
class GroupedGroups(Groups):
    """Rows sorted by expert, with the ends of the groups on the device: every product is one grouped product.

    Args:
        expert_N: int64, ascending: the expert of each row, E for a row of none.
        end_E: int32, where each expert's rows end.
    """

    def __init__(self, expert_N: Tensor, end_E: Tensor) -> None:
        self.expert_N = expert_N
        self.end_E = end_E
        self.num_experts = end_E.shape[0]
        self.num_rows = expert_N.shape[0]

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, in autocast's dtype where autocast is on (``F.grouped_mm`` itself knows nothing of it)."""
        device = x_ND.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x_ND, w_EHD = x_ND.to(dtype), w_EHD.to(dtype)
            b_EH = None if b_EH is None else b_EH.to(dtype)
        y_NH: Tensor = grouped_linear(x_ND, w_EHD, self.end_E)
        return y_NH if b_EH is None else y_NH + self.per_row(b_EH)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``: each row its expert's slice; 0 for a row of none. A slice's gradient is one sum, rounded once."""
        row_N = torch.arange(self.num_rows, device=self.expert_N.device)
        own_N = self.expert_N.clamp(max=self.num_experts - 1)  # past the last group: any, for take_rows clears it
        p_NX: Tensor = take_rows(p_EX.reshape(self.num_experts, -1), own_N, row_N, F.pad(self.end_E.long(), (1, 0)))
        return p_NX.view(self.num_rows, *p_EX.shape[1:])

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert. Reads the sizes on the host, so it does not compile into one graph."""
        ends: list[int] = self.end_E.tolist()
        return [x_ND[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Plan(NamedTuple):
    """Where every pair goes and comes back, as tensors of static shape.

    Attributes:
        pair_N: int64, the pair that each row holds; rows are sorted by expert, pairs that go nowhere last.
        expert_N: int64, the expert of each row, ascending; E in the rows past the last group.
        end_E: int32, where each expert's rows end.
        token_N: int64, the token of each row.
        by_token_N: int64, the rows token by token, those past the last group at the end.
        start_T: int64 ``[T + 1]``, where each token's rows start in ``by_token_N``; last, how many rows count.
    """

    pair_N: Tensor
    expert_N: Tensor
    end_E: Tensor
    token_N: Tensor
    by_token_N: Tensor
    start_T: Tensor


def plan(pairs: Pairs, num_tokens: int, num_experts: int) -> Plan:
    """Sorts pairs by expert, and the rows so made by token again. Both sorts are stable: the order is always one."""
    expert_N, pair_N = narrow(pairs.expert_N, num_experts).sort(stable=True)
    device = expert_N.device
    experts_E = torch.arange(num_experts, dtype=expert_N.dtype, device=device)
    token_N = pairs.token_N.index_select(0, pair_N)
    home_N, by_token_N = narrow(token_N.where(expert_N < num_experts, num_tokens), num_tokens).sort(stable=True)
    tokens_T = torch.arange(num_tokens + 1, dtype=home_N.dtype, device=device)
    return Plan(
        pair_N=pair_N,
        expert_N=expert_N.long(),
        end_E=torch.searchsorted(expert_N, experts_E, right=True, out_int32=True),
        token_N=token_N,
        by_token_N=by_token_N,
        start_T=torch.searchsorted(home_N, tokens_T),
    )


@final
class GroupedDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, all experts in one grouped product.

    Source: dropless dispatch by sorting is Gale et al. 2022 (arXiv 2211.15841), section 3; what is sorted, and the
    sums by token in place of a scatter, are ours.

    Shapes are static, so a layer compiles into one graph, and nothing is read from the device. (The exceptions: banks
    that ``split`` their rows; float64, which ``F.grouped_mm`` does not take; and whatever ``F.grouped_mm`` itself does
    on a device that has no grouped kernel.) Gates multiply in the wider
    of their own and the experts' output dtype; y has the experts' output dtype. Pairs that go nowhere are no row of
    any product: what stands in a padding token, NaN included, reaches nothing.

    Raises:
        ValueError: a soft routing.
    """

    def __init__(self, spec: Grouped, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts, gathers, computes, sums by token."""
        pairs = pairs_of(routing)
        if are_few(pairs, routing.num_experts):
            return few(x_TD, pairs, experts)
        way = plan(pairs, x_TD.shape[0], routing.num_experts)
        route = (way.token_N, way.by_token_N, way.start_T)
        out_NO = experts(take_rows(x_TD, *route), GroupedGroups(way.expert_N, way.end_E))

        gate_N = pairs.gate_N.index_select(0, way.pair_N)
        dtype = torch.promote_types(gate_N.dtype, out_NO.dtype)
        y_TO = sum_rows(out_NO.to(dtype), gate_N.to(dtype), *route)
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=way.pair_N.new_zeros(()))
