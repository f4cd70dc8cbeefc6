"""The automatic dispatcher: a small measured rule, and no state."""

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
"""Multiply-adds of the first product, for an expert's even share of rows, from which the walk is faster on a CPU.
Measured: docs/benchmarks.md. Below it, calling each expert by itself costs more than the grouped product's copies."""


@final
class AutoDispatcher(Dispatcher):
    """Chooses at each call, from static facts alone: ``soft`` for soft routings; ``fused`` on a CPU, for banks of
    standard form whose experts have work enough; else ``grouped``. ``explain`` says what it would choose, and why.

    ``triton`` is for whoever names it: until its kernels have been timed on a GPU, nothing chooses them.

    Args:
        spec: its options.
        dims: passed on.
    """

    def __init__(self, spec: Auto, dims: LayerDims) -> None:
        super().__init__()
        self.soft = SoftDispatcher(SoftSpec(), dims)
        self.fused = FusedDispatcher(Fused(save=spec.save), dims)
        self.grouped = GroupedDispatcher(Grouped(), dims)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Chooses, and hands on."""
        chosen, _ = self._choose(x_TD, routing, experts)
        return chosen(x_TD, routing, experts, num_sequences=num_sequences)  # type: ignore[no-any-return]

    def explain(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> str:
        """What ``forward`` would choose for these, and why, in a line."""
        chosen, reason = self._choose(x_TD, routing, experts)
        name = next(name for name, dispatcher in self.named_children() if dispatcher is chosen)
        return f"{name}: {reason}"

    def _choose(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> tuple[Dispatcher, str]:
        if isinstance(routing, Soft):
            return self.soft, "the routing is soft"
        form = experts.standard_form()
        if form is None:
            return self.grouped, f"{type(experts).__name__} is of no standard form"
        if reason := why_not(x_TD, form):
            return self.grouped, f"'fused' cannot: {reason}"
        pairs = routing.gate_TK if isinstance(routing, TokenChoice) else pairs_of(routing).gate_N
        rows = pairs.numel() // routing.num_experts
        work = rows * form.w_in_EHD[0].numel()
        told = f"{rows} rows an expert, {work / 1e6:.1f}M multiply-adds in its first product; 'fused' pays from "
        return (self.fused if work >= FUSED_FROM else self.grouped), f"{told}{FUSED_FROM / 1e6:.1f}M"
