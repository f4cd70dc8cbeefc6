"""The automatic dispatcher: a small measured rule, without state."""

from __future__ import annotations

from typing import final

from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.routing import Routing, Soft, TokenChoice, pairs_of
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.fused.module import FusedDispatcher, why_not
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.soft import Soft as SoftSpec
from moekit_dispatchers.soft.module import SoftDispatcher

FUSED_FROM = 1 << 19
"""Multiply-adds of an expert's first product (at even load) from which ``fused`` is faster on a CPU. Below it, the
overhead of one call per expert is larger than the grouped product's copies. Measured: docs/benchmarks.md."""


@final
class AutoDispatcher(Dispatcher):
    """Chooses a dispatcher at each call, by static facts alone, in this order:

    ``soft`` for soft routings; ``fused`` on a CPU, for banks of standard form whose experts have enough work; else
    ``grouped``. ``explain`` says which, and why. ``triton`` must be named: its kernels have not been timed on a GPU.
    """

    def __init__(self, spec: Auto, dims: LayerDims) -> None:
        super().__init__()
        self.soft = SoftDispatcher(SoftSpec(), dims)
        self.fused = FusedDispatcher(Fused(save=spec.save), dims)
        self.grouped = GroupedDispatcher(Grouped(), dims)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Runs the chosen dispatcher."""
        chosen, _ = self._choose(x_TD, routing, experts)
        return chosen(x_TD, routing, experts, num_sequences=num_sequences)  # type: ignore[no-any-return]

    def explain(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> str:
        """The dispatcher that ``forward`` would choose for these arguments, and why, in a line."""
        chosen, reason = self._choose(x_TD, routing, experts)
        name = next(name for name, dispatcher in self.named_children() if dispatcher is chosen)
        return f"{name}: {reason}"

    def _choose(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> tuple[Dispatcher, str]:
        if isinstance(routing, Soft):
            return self.soft, "the routing is soft"
        if x_TD.device.type != "cpu":
            return self.grouped, f"'fused' is for CPUs, and the tokens are on {x_TD.device.type}"
        form = experts.standard_form()
        if form is None:
            return self.grouped, f"{type(experts).__name__} has no standard form"
        pairs = routing.gate_TK if isinstance(routing, TokenChoice) else pairs_of(routing).gate_N
        rows = pairs.numel() // routing.num_experts
        work = rows * form.w_in_EHD[0].numel()
        enough = (
            f"{rows} rows per expert, {work / 1e6:.1f}M multiply-adds in its first product; 'fused' is faster from "
        )
        enough += f"{FUSED_FROM / 1e6:.1f}M"
        if work < FUSED_FROM:
            return self.grouped, enough
        reason = why_not(x_TD, form)
        return (self.grouped, f"'fused' cannot: {reason}") if reason else (self.fused, enough)
