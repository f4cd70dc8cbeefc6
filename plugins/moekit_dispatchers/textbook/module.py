"""The textbook dispatcher, and its rows: sorted by expert, with their number known on the host."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit.routing import Routing, pairs_of
from moekit_dispatchers.grouped.ops import in_autocast_dtype
from moekit_dispatchers.textbook import Textbook


@final
class TextbookGroups(Groups):
    """Rows sorted by expert, as many as ``sizes`` adds up to: every product is one ``F.grouped_mm``."""

    def __init__(self, sizes: list[int], device: torch.device) -> None:
        self.sizes, self.num_experts, self.num_rows = sizes, len(sizes), sum(sizes)
        self.size_E = torch.tensor(sizes, device=device)
        self.end_E = self.size_E.cumsum(0, dtype=torch.int32)

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, in autocast's dtype where autocast is on (autocast does not cover ``F.grouped_mm``)."""
        x_ND, w_EHD, b_EH = in_autocast_dtype(x_ND, w_EHD, b_EH)
        if can_group(x_ND, w_EHD):
            y_NH = F.grouped_mm(x_ND.contiguous(), w_EHD.mT, offs=self.end_E)
        else:
            y_NH = torch.cat([F.linear(x_nD, w_HD) for x_nD, w_HD in zip(self.split(x_ND), w_EHD, strict=True)])
        return y_NH if b_EH is None else y_NH + self.per_row(b_EH)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        return p_EX.repeat_interleave(self.size_E, dim=0, output_size=self.num_rows)

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        return list(torch.split(x_ND, self.sizes))


def can_group(x_ND: Tensor, w_EHD: Tensor) -> bool:
    """Whether ``F.grouped_mm`` takes these rows and weights, forward and backward, as they are."""
    unit = 16 // x_ND.element_size()
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    aligned = not any(width % unit for width in w_EHD.shape[1:])
    return x_ND.shape[0] > 0 and x_ND.dtype in dtypes and x_ND.device.type == "cpu" and aligned


@final
class TextbookDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t: sort, index, multiply, un-sort, weighted sum.

    Autograd does the rest, and saves every row that is made on the way. With little work this is the fastest on a CPU,
    because nothing is computed twice; with much, ``fused`` and ``grouped`` need less memory and time. Reads the loads
    on the host. Odd widths, float64 and devices other than CPUs take one product for each expert.

    Raises:
        ValueError: a soft routing.
    """

    def __init__(self, spec: Textbook, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts pairs by expert, runs the experts, adds each output to its token."""
        pairs = pairs_of(routing)
        E = routing.num_experts
        order_N = pairs.expert_N.argsort(stable=True)
        sizes: list[int] = torch.bincount(pairs.expert_N, minlength=E + 1)[:E].tolist()
        order_N = order_N[: sum(sizes)]  # pairs that go nowhere have expert E, and come last
        token_N = pairs.token_N[order_N]
        out_NO = experts(x_TD.index_select(0, token_N), TextbookGroups(sizes, x_TD.device))
        gated_NO = pairs.gate_N[order_N][:, None] * out_NO  # in the wider of the two dtypes
        y_TO = gated_NO.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, gated_NO)
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=token_N.new_zeros(()))
