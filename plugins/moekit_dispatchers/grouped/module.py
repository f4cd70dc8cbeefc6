"""The grouped dispatcher, its rows that are grouped by offsets on the device, and its path for a few pairs on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit.parallel.traffic import row_dtype
from moekit.routing import Pairs, Routing, pairs_of
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.ops import expert_rows, grouped_linear, in_autocast_dtype, narrow_keys
from moekit_dispatchers.grouped.rows import ByToken, sum_rows, take_rows

MOST_FEW = 32
"""The path for few pairs takes at most this many, and at most one pair for every two experts: with more, the grouped
product is as fast. (One batched product over gathered weights is slower than both.) Measured: docs/measurements.md,
Decoding."""


@final
class GroupedGroups(Groups):
    """Rows sorted by expert, with the ends of the groups on the device: every product is one grouped product.

    Args:
        expert_N: integers, ascending: the expert of each row; E for a row without an expert.
        end_E: int32, where each expert's rows end.
        all_sent: whether every row has an expert, as a static fact.
    """

    def __init__(self, expert_N: Tensor, end_E: Tensor, all_sent: bool = False) -> None:
        self.expert_N = expert_N
        self.end_E = end_E
        self.all_sent = all_sent
        self.num_experts = end_E.shape[0]
        self.num_rows = expert_N.shape[0]

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, in autocast's dtype where autocast is on (autocast does not cover ``F.grouped_mm``)."""
        x_ND, w_EHD, b_EH = in_autocast_dtype(x_ND, w_EHD, b_EH)
        y_NH: Tensor = grouped_linear(x_ND, w_EHD, self.end_E, self.all_sent)
        return y_NH if b_EH is None else y_NH + self.per_row(b_EH)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``: each row's slice of its expert; 0 without an expert. The gradient of a slice is rounded once."""
        p_NX: Tensor = expert_rows(p_EX.reshape(self.num_experts, -1), self.expert_N, self.end_E, self.all_sent)
        return p_NX.view(self.num_rows, *p_EX.shape[1:])

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert. Reads the sizes on the host, so it does not compile into one graph."""
        ends: list[int] = self.end_E.tolist()
        return [x_ND[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@final
class ListedGroups(Groups):
    """Rows whose ``experts``, ascending, are known on the host: one product for each expert that has rows."""

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
        return zip((e for e, _ in self.sizes), x_ND.split_with_sizes(sizes) if sizes else (), strict=True)


class SortedPairs(NamedTuple):
    """Pairs as rows sorted by expert, and the same rows listed by token; all tensors have static shapes.

    Attributes:
        pair_N: int64, the pair of each row; pairs that go nowhere come last.
        expert_N: the expert of each row, ascending; E in the rows past the last group. The narrowest integers.
        end_E: int32, where each expert's rows end.
        by_token: the tokens of the rows, and the rows of the tokens.
    """

    pair_N: Tensor
    expert_N: Tensor
    end_E: Tensor
    by_token: ByToken


def sort_pairs(pairs: Pairs, num_tokens: int, num_experts: int) -> SortedPairs:
    """Sorts pairs by expert, and these rows by token. Both sorts are stable, so the order is deterministic."""
    expert_N, pair_N = narrow_keys(pairs.expert_N, num_experts).sort(stable=True)
    device = expert_N.device
    experts_E = torch.arange(num_experts, dtype=expert_N.dtype, device=device)
    token_N = pairs.token_N.index_select(0, pair_N)
    key_N = token_N if pairs.all_sent else token_N.where(expert_N < num_experts, num_tokens)
    key_N, by_token_N = narrow_keys(key_N, num_tokens).sort(stable=True)
    tokens_T = torch.arange(num_tokens + 1, dtype=key_N.dtype, device=device)
    return SortedPairs(
        pair_N=pair_N,
        expert_N=expert_N,
        end_E=torch.searchsorted(expert_N, experts_E, right=True, out_int32=True),
        by_token=ByToken(token_N, by_token_N, torch.searchsorted(key_N, tokens_T), pairs.all_sent),
    )


@final
class GroupedDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, all experts in one grouped product.

    Source: dropless dispatch by sorting is Gale et al. 2022, MegaBlocks (arXiv 2211.15841), section 3. Sums by
    token in place of a scatter are ours.

    Shapes are static, so a layer compiles into one graph, and nothing is read from the device. Exceptions: banks that
    ``split`` their rows; float64; and, where Triton is missing, products for which a GPU has no grouped kernel
    (``gpus.grouped_is_fast``).

    Under autocast fp32 tokens are rounded before they are gathered (``row_dtype``), because an expert's first product
    rounds them anyway; their gradients are summed in fp32. A bank that starts with another operation than a product
    therefore sees rounded rows. Gates multiply in the wider of their own and the experts' output dtype; y has the
    experts' output dtype. Pairs that go nowhere are in no product, so the content of padding tokens, NaN included,
    reaches nothing.

    A few pairs on a CPU without gradients (decoding) take a path of their own, which uses the chosen experts alone:
    the grouped product visits all E experts, and both sorts cost more than a handful of experts.

    Raises:
        ValueError: a soft routing.
    """

    def __init__(self, spec: Grouped, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts, gathers, computes, sums by token."""
        pairs = pairs_of(routing)
        if are_few(pairs.expert_N.shape[0], routing.num_experts, x_TD.device):
            return dispatch_few(x_TD, pairs, experts)
        rows = sort_pairs(pairs, x_TD.shape[0], routing.num_experts)
        x_ND = take_rows(x_TD, *rows.by_token, row_dtype(x_TD))
        out_NO = experts(x_ND, GroupedGroups(rows.expert_N, rows.end_E, pairs.all_sent))
        y_TO = sum_rows(out_NO, pairs.gate_N.index_select(0, rows.pair_N), *rows.by_token, out_NO.dtype)
        return Dispatched(y_TO=y_TO, dropped=rows.pair_N.new_zeros(()))


def are_few(N: int, num_experts: int, device: torch.device) -> bool:
    """Whether ``dispatch_few`` should run so many pairs: decided by static facts, never by tensor values."""
    eager_without_grad = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return eager_without_grad and N <= min(MOST_FEW, num_experts // 2) and device.type == "cpu"


def dispatch_few(x_TD: Tensor, pairs: Pairs, experts: ExpertBank) -> Dispatched:
    """The result of ``GroupedDispatcher`` for a few pairs; those that go nowhere are filtered out on the host."""
    expert_N, pair_N = pairs.expert_N.sort(stable=True)
    listed = [e for e in expert_N.tolist() if e < experts.num_experts]
    if len(listed) < len(pair_N):
        pair_N = pair_N[: len(listed)]
    gate_N, groups = pairs.gate_N.index_select(0, pair_N), ListedGroups(listed, experts.num_experts)
    if x_TD.shape[0] == 1:  # every row is the same token, and all rows are summed
        out_NO = experts(x_TD.expand(len(listed), -1), groups)
        y_TO = (gate_N[:, None] * out_NO).sum(0, keepdim=True)  # in the wider of the two dtypes
    else:
        token_N = pairs.token_N.index_select(0, pair_N)
        out_NO = experts(x_TD.index_select(0, token_N), groups)
        gated_NO = gate_N[:, None] * out_NO
        y_TO = gated_NO.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, gated_NO)
    return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=pair_N.new_zeros(()))
