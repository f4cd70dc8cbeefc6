"""The fused dispatcher."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from moekit.compat import has_onednn
from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims, StandardForm
from moekit.errors import MoekitError
from moekit.routing import Pairs, Routing, pairs_of
from moekit_dispatchers.fused import Fused, thread_pool
from moekit_dispatchers.fused.blockwise import BlockwiseExperts, Plan, most_rows
from moekit_dispatchers.fused.thread_pool import shares
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.grouped.ops import narrow_keys


@final
class FusedDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, one expert after the other.

    Takes banks of standard form (``ExpertBank.standard_form``: glu and ffn without extras) on a CPU, and uses their
    weights directly. Hands everything else to ``grouped``: other banks, other devices, autocast, tokens and weights of
    different or half precision, ``torch.compile`` (``why_not`` gives the reason).

    Saved for backward under ``save: minimum``, for a GLU: the tokens (T·D), the first product's output (N·2H), the
    gates and the order of the pairs; nothing of width D per pair. Differentiable once: ``create_graph=True`` is
    rejected.

    Raises:
        ValueError: a soft routing.
        MoekitError: ``products: onednn``, which this torch does not have.
    """

    def __init__(self, spec: Fused, dims: LayerDims) -> None:
        super().__init__()
        if spec.products == "onednn" and not has_onednn():
            raise MoekitError(
                f"dispatcher 'fused': products=onednn, but torch {torch.__version__} has no oneDNN here\n"
                "  expected products=torch"
            )
        self.spec = spec
        self.otherwise = GroupedDispatcher(Grouped(), dims)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sorts pairs, computes expert by expert."""
        pairs = pairs_of(routing)
        form = experts.standard_form()
        if form is None or why_not(x_TD, form):
            return self.otherwise(x_TD, routing, experts, num_sequences=num_sequences)  # type: ignore[no-any-return]
        y_TO = blockwise(x_TD, pairs, form, routing.num_experts, self.spec)
        return Dispatched(y_TO=y_TO, dropped=pairs.token_N.new_zeros(()))


def blockwise(x_TD: Tensor, pairs: Pairs, form: StandardForm, num_experts: int, spec: Fused) -> Tensor:
    """``y_TO``: sorts the pairs and computes them block by block."""
    expert_N, order_N = narrow_keys(pairs.expert_N, num_experts).sort(stable=True)
    sizes = torch.bincount(expert_N, minlength=num_experts + 1)[:num_experts].tolist()
    order_N = order_N[: sum(sizes)]  # pairs that go nowhere come last
    work = len(order_N) * form.w_in_EHD[0].numel()
    parts = shares(sizes, torch.get_num_threads() if work >= thread_pool.PARALLEL_FROM else 1)
    most = most_rows(x_TD, form.w_in_EHD)
    onednn = spec.products == "onednn" and x_TD.dtype == torch.float32
    plan = Plan(sizes, parts, most, form.activation, spec.save, onednn)
    gate_N = pairs.gate_N.index_select(0, order_N).to(x_TD.dtype)
    token_N = pairs.token_N.index_select(0, order_N)
    y_TO: Tensor = BlockwiseExperts.apply(x_TD.contiguous(), gate_N, form.w_in_EHD, form.w_out_EOH, token_N, plan)  # type: ignore[no-untyped-call]
    return y_TO


def why_not(x_TD: Tensor, form: StandardForm) -> str:
    """Why ``fused`` cannot take these tokens and weights, in words; empty if it can."""
    if x_TD.device.type != "cpu":
        return f"it is for CPUs; the tokens are on {x_TD.device.type}"
    if x_TD.dtype != form.w_in_EHD.dtype or x_TD.dtype not in (torch.float32, torch.float64):
        return f"it takes fp32 or fp64 throughout; tokens are {x_TD.dtype}, weights {form.w_in_EHD.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return "it is being compiled, and reads loads on the host" if torch.compiler.is_compiling() else ""
