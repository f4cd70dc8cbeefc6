"""The automatic dispatcher: times the dispatchers that can take the tokens, once for each size; takes the fastest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

import moekit
from moekit.compat import is_observed
from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims, StandardForm
from moekit.machine import processor_name
from moekit.routing import Routing, Soft, gates_of
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.auto.choices import CHOICES, Times
from moekit_dispatchers.auto.timing import Size, size_of, time_dispatchers
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.fused.module import why_not as why_not_fused
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.gpus import why_slow
from moekit_dispatchers.grouped.module import GroupedDispatcher, are_few
from moekit_dispatchers.soft import Soft as SoftSpec
from moekit_dispatchers.soft.module import SoftDispatcher
from moekit_dispatchers.textbook import Textbook
from moekit_dispatchers.textbook.module import TextbookDispatcher, can_group
from moekit_dispatchers.triton import Triton
from moekit_dispatchers.triton.module import TritonDispatcher

CLEARLY = 1.03
"""A dispatcher that saves more for backward must be this many times as fast as one that saves less."""

LEAST_SAVED_FIRST = ("fused", "triton", "grouped", "textbook")

FUSED_FROM = 1 << 19
"""Multiply-adds of an expert's first product (at even load) from which ``fused`` is faster on a CPU, by the fixed rule.
Below it, the overhead of one call per expert is larger than the grouped product's copies."""

TEXTBOOK_UP_TO = 1 << 21
"""Numbers that ``textbook`` makes for its rows up to which it is the fastest on a CPU, by the fixed rule: they stay in
the processor's cache. Measured, as the line above: docs/benchmarks.md."""


@final
class AutoDispatcher(Dispatcher):
    """Chooses a dispatcher at each call, by device, dtype and size, never by values.

    ``soft`` for soft routings. For experts modules of standard form, whichever of ``fused``, ``triton``, ``grouped``
    and ``textbook`` is the fastest: they are timed once for each size on a machine (``timing.py``), and the times are
    kept (``choices.py``). ``grouped`` for all other modules.

    A fixed rule chooses instead if the option says so or ``MOEKIT_AUTO=fixed`` is set, if torch must be deterministic,
    with several processes, under ``torch.compile``, and wherever the calls of an operator are counted or recorded.
    ``explain`` says which dispatcher is chosen, and why.
    """

    def __init__(self, spec: Auto, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.soft = SoftDispatcher(SoftSpec(), dims)
        self.fused = FusedDispatcher(Fused(save=spec.save), dims)
        self.triton = TritonDispatcher(Triton(save=spec.save), dims)
        self.grouped = GroupedDispatcher(Grouped(), dims)
        self.textbook = TextbookDispatcher(Textbook(), dims)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Runs the chosen dispatcher."""
        name, _ = self._choose(x_TD, routing, experts)
        return self.get_submodule(name)(x_TD, routing, experts, num_sequences=num_sequences)  # type: ignore[no-any-return]

    def explain(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> str:
        """The dispatcher that ``forward`` would choose for these arguments, and why, in a line."""
        name, reason = self._choose(x_TD, routing, experts)
        return f"{name}: {reason}"

    def _choose(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> tuple[str, str]:
        if isinstance(routing, Soft):
            return "soft", "the routing is soft"
        form = experts.standard_form()
        if form is None:
            return "grouped", f"{type(experts).__name__} has no standard form"
        N = gates_of(routing).numel()
        if are_few(N, routing.num_experts, x_TD.device):
            return "grouped", "it has a path for a few pairs without gradients"
        cannot = self._cannot(x_TD, form)
        if set(LEAST_SAVED_FIRST) - set(cannot) == {"grouped"}:
            return "grouped", "; ".join(f"'{name}' cannot: {why}" for name, why in cannot.items())
        if why_fixed := self._why_fixed(x_TD, form):
            name, reason = by_rule(x_TD, N, routing.num_experts, form, cannot)
            return name, f"{reason} (by the fixed rule: {why_fixed})"
        size = size_of(x_TD.shape[0], N, routing.num_experts)
        grad = torch.is_grad_enabled() and (x_TD.requires_grad or form.w_in_EHD.requires_grad)
        device = x_TD.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        widths = (x_TD.shape[1], form.w_in_EHD.shape[1], form.w_out_EOH.shape[1])
        threads = torch.get_num_threads()
        key = (x_TD.device, threads, size, widths, form.activation, x_TD.dtype, autocast, grad, self.spec.save, *cannot)
        if key not in CHOICES.chosen:
            text = (
                f"{size.text} in={widths[0]} first={widths[1]} out={widths[2]} activation={form.activation} "
                f"gated={form.gated} dtype={x_TD.dtype} autocast={autocast} grad={grad} save={self.spec.save}"
            )
            CHOICES.chosen[key] = fastest(self._times(text, x_TD, form, size, grad, cannot))
        return CHOICES.chosen[key]

    def _cannot(self, x_TD: Tensor, form: StandardForm) -> dict[str, str]:
        """Why dispatchers cannot take these tokens and weights; those that can are missing."""
        triton = self.triton.why_not(x_TD, form) or ("" if self.triton.installed else "the package is not installed")
        textbook = "" if can_group(x_TD, form.w_in_EHD) else "no grouped product takes these widths, dtype and device"
        if torch.compiler.is_compiling():
            textbook = "it is being compiled, and reads loads on the host"
        found = {"fused": why_not_fused(x_TD, form), "triton": triton, "textbook": textbook}
        return {name: why for name, why in found.items() if why}

    def _why_fixed(self, x_TD: Tensor, form: StandardForm) -> str:
        """Why nothing is timed, in words; empty if times choose."""
        if self.spec.choose == "fixed":
            return "choose=fixed"
        if os.environ.get("MOEKIT_AUTO") == "fixed":
            return "MOEKIT_AUTO=fixed"
        if torch.compiler.is_compiling():
            return "it is being compiled"
        if torch.are_deterministic_algorithms_enabled():
            return "torch must be deterministic"
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return "there are several processes"
        if is_observed() or any(type(t) not in (Tensor, nn.Parameter) for t in (x_TD, form.w_in_EHD, form.w_out_EOH)):
            return "operators are being recorded"
        capturing = x_TD.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        return "a CUDA graph is being captured" if capturing else ""

    def _times(
        self, text: str, x_TD: Tensor, form: StandardForm, size: Size, grad: bool, cannot: Mapping[str, str]
    ) -> Times:
        """Milliseconds of the dispatchers that can take such calls, measured now if they are unknown."""
        machine = machine_of(x_TD.device)
        known = CHOICES.get(machine, text)
        if known is None:
            able = {name: self.get_submodule(name) for name in LEAST_SAVED_FIRST if name not in cannot}
            times = time_dispatchers(able, x_TD, form, size, grad=grad)  # type: ignore[arg-type]
            known = CHOICES.put(machine, text, times) if times else {}
        return {name: taken for name, taken in known.items() if name in LEAST_SAVED_FIRST and name not in cannot}


def fastest(times: Times) -> tuple[str, str]:
    """Of dispatchers that are about as fast as the fastest, that which saves least for backward; and why."""
    if not times:
        return "grouped", "no dispatcher could be timed"
    enough = CLEARLY * min(times.values())
    name = next(name for name in LEAST_SAVED_FIRST if times.get(name, float("inf")) <= enough)
    return name, "measured: " + ", ".join(f"{each} {times[each]:g} ms" for each in sorted(times, key=times.__getitem__))


def by_rule(x_TD: Tensor, N: int, num_experts: int, form: StandardForm, cannot: Mapping[str, str]) -> tuple[str, str]:
    """The dispatcher that the fixed rule chooses for N pairs, and why."""
    if x_TD.device.type != "cpu":
        slow = why_slow(x_TD, num_experts)
        takes_triton = slow and "triton" not in cannot
        return ("triton" if takes_triton else "grouped"), slow or "torch has one kernel for each product"
    rows, first = N // num_experts, form.w_in_EHD.shape[1]
    numbers = N * (x_TD.shape[1] + first + form.w_out_EOH.shape[2] + form.w_out_EOH.shape[1])
    work = rows * form.w_in_EHD[0].numel()
    reason = f"{N} pairs, {rows} rows per expert, {work / 1e6:.1f}M multiply-adds in its first product"
    if numbers <= TEXTBOOK_UP_TO and "textbook" not in cannot:
        return "textbook", reason
    return ("fused" if work >= FUSED_FROM and "fused" not in cannot else "grouped"), reason


def machine_of(device: torch.device) -> str:
    """What times hold for: the device, its threads, and the versions of torch and moekit."""
    versions = f"torch {torch.__version__}, moekit {moekit.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, {versions}"
