"""The textbook dispatcher, and its rows: sorted by expert, with their number known on the host."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.compat import is_eager
from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims, StandardForm
from moekit.contracts.layer import Groups
from moekit.routing import Routing, TokenChoice, gates_of, pairs_of
from moekit_dispatchers.grouped.ops import in_autocast_dtype
from moekit_dispatchers.textbook import Textbook
from moekit_dispatchers.textbook.whole import whole


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
    (_, H, D), dtype = w_EHD.shape, x_ND.dtype
    unit = 4 if dtype == torch.float32 else 8 if dtype in (torch.bfloat16, torch.float16) else 0
    return unit > 0 and not H % unit and not D % unit and x_ND.shape[0] > 0 and x_ND.is_cpu


def is_whole(x_TD: Tensor, gates: Tensor, form: StandardForm) -> bool:
    """Whether ``run_whole`` takes these tokens, gates and weights: fp32, eager, and no operators are being recorded."""
    w_in_EXD, w_out_EOH = form.w_in_EHD, form.w_out_EOH
    return (
        x_TD.dtype == gates.dtype == w_in_EXD.dtype == w_out_EOH.dtype == torch.float32
        and can_group(x_TD, w_in_EXD)
        and can_group(x_TD, w_out_EOH)
        and gates.numel() > 0
        and w_in_EXD.is_contiguous()
        and w_out_EOH.is_contiguous()
        and is_eager()
    )


def run_whole(x_TD: Tensor, routing: Routing, form: StandardForm) -> Dispatched | None:
    """The layer as one function; None if the routing is not a token choice, or sends only some pairs."""
    if not isinstance(routing, TokenChoice) or routing.counts_TK() is not None:
        return None
    expert_TK = routing.expert_TK
    y_TO = whole(x_TD, routing.gate_TK, form.w_in_EHD, form.w_out_EOH, expert_TK, form.activation)
    return Dispatched(y_TO=y_TO, dropped=expert_TK.new_zeros(()))


@final
class TextbookDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t: sort, index, multiply, un-sort, weighted sum.

    Saves every row that is made on the way. With little work this is the fastest on a CPU, because nothing is computed
    twice; with much, ``fused`` needs less memory and time. Experts of standard form in fp32, with a token choice all of
    whose pairs are sent, are one autograd function (``whole.py``), differentiable once. All else is left to autograd
    and reads the loads on the host. Odd widths, float64 and devices other than CPUs take one product for each expert.

    Raises:
        ValueError: a soft routing.
    """

    def __init__(self, spec: Textbook, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts pairs by expert, runs the experts, adds each output to its token."""
        form = experts.standard_form()
        if form is not None and is_whole(x_TD, gates_of(routing), form):
            done = run_whole(x_TD, routing, form)
            if done is not None:
                return done
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
