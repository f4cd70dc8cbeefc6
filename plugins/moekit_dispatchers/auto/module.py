"""The automatic dispatcher: times the dispatchers that can take the tokens, once for each size; takes the fastest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

import moekit
from moekit.compat import has_onednn, is_observed
from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims, StandardForm
from moekit.machine import processor_name
from moekit.routing import Routing, Soft, gates_of
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.auto.choices import CHOICES, Choice, Times
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
from moekit_dispatchers.textbook.module import TextbookDispatcher, can_group, is_whole, run_whole
from moekit_dispatchers.triton import Triton
from moekit_dispatchers.triton.module import TritonDispatcher

CLEARLY = 1.02
"""A dispatcher that saves more for backward must be this many times as fast as one that saves less."""

LEAST_SAVED_FIRST = ("fused", "onednn", "triton", "grouped", "textbook")

MOST_KNOWN = 1 << 10
"""Choices that are kept in memory: more are of numbers of tokens that change with every call."""

HAS_RANKS = dist.is_available()

FUSED_FROM = 1 << 19
"""Multiply-adds of an expert's first product (at even load) from which ``fused`` is faster on a CPU, by the fixed rule.
Below it, the overhead of one call per expert is larger than the grouped product's copies."""

TEXTBOOK_UP_TO = 1 << 21
"""Numbers that ``textbook`` makes for its rows up to which it is the fastest on a CPU, by the fixed rule: they stay in
the processor's cache. Measured, as the line above: docs/benchmarks.md."""

PLAIN = frozenset({Tensor, nn.Parameter})
"""Types of tensors whose operators do what they say; others (of ``torch.distributed``, say) may do more."""

TEXTBOOK_NEVER_FROM = {True: 1 << 23, False: 1 << 25}
"""Numbers beyond which ``textbook`` is not timed on a CPU if ``fused`` is: with gradients (it keeps them), without."""


@final
class AutoDispatcher(Dispatcher):
    """Chooses a dispatcher at each call, by device, dtype and size, never by values.

    ``soft`` for soft routings. For experts modules of standard form, whichever of ``fused``, ``onednn`` (which is
    ``fused`` with the products of oneDNN), ``triton``, ``grouped`` and ``textbook`` is the fastest: they are timed once
    for each size on a machine (``timing.py``), and the times are kept (``choices.py``). ``grouped`` for all other
    modules.

    A fixed rule chooses instead if the option says so or ``MOEKIT_AUTO=fixed`` is set, if torch must be deterministic,
    with several processes, under ``torch.compile``, and wherever the calls of an operator are counted or recorded.
    ``explain`` says which dispatcher is chosen, and why.
    """

    def __init__(self, spec: Auto, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.has_onednn = has_onednn()
        by_environment = "MOEKIT_AUTO=fixed" if os.environ.get("MOEKIT_AUTO") == "fixed" else ""
        self.fixed = "choose=fixed" if spec.choose == "fixed" else by_environment
        self.soft = SoftDispatcher(SoftSpec(), dims)
        self.fused = FusedDispatcher(Fused(save=spec.save), dims)
        self.onednn = FusedDispatcher(Fused(save=spec.save, products="onednn" if self.has_onednn else "torch"), dims)
        self.triton = TritonDispatcher(Triton(save=spec.save), dims)
        self.grouped = GroupedDispatcher(Grouped(), dims)
        self.textbook = TextbookDispatcher(Textbook(), dims)

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Runs the chosen dispatcher."""
        form = experts.standard_form()
        name, _, whole = self._choose(x_TD, routing, experts, form)
        if whole and form is not None and (done := run_whole(x_TD, routing, form)) is not None:
            return done
        chosen = cast(Dispatcher, getattr(self, name))
        return cast(Dispatched, chosen(x_TD, routing, experts, num_sequences=num_sequences))

    def explain(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> str:
        """The dispatcher that ``forward`` would choose for these arguments, and why, in a line."""
        name, reason, _ = self._choose(x_TD, routing, experts, experts.standard_form())
        return f"{name}: {reason}"

    def _choose(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, form: StandardForm | None) -> Choice:
        if isinstance(routing, Soft):
            return Choice("soft", "the routing is soft")
        if form is None:
            return Choice("grouped", f"{type(experts).__name__} has no standard form")
        gates, w_in_EXD, w_out_EOH = gates_of(routing), form.w_in_EHD, form.w_out_EOH
        if torch.compiler.is_compiling():
            return self._new_choice(x_TD, gates, form, routing.num_experts)
        # All that a measured choice depends on. With the lookup this takes as long as a small operator.
        device = x_TD.device
        key = (
            x_TD.shape, gates.shape, w_in_EXD.shape, w_out_EOH.shape, device,
            x_TD.dtype, gates.dtype, w_in_EXD.dtype, w_out_EOH.dtype,
            type(x_TD), type(w_in_EXD), type(w_out_EOH), form.activation, self.fixed, self.spec.save,
            has_gradients(x_TD, form), torch.get_num_threads(),
            torch.is_autocast_enabled(device.type), torch.are_deterministic_algorithms_enabled(), is_observed(),
            HAS_RANKS and dist.is_initialized() and dist.get_world_size(),
            device.type == "cuda" and type(x_TD) is Tensor and torch.cuda.is_current_stream_capturing(),
        )  # fmt: skip
        if (found := CHOICES.chosen.get(key)) is None:
            found = self._new_choice(x_TD, gates, form, routing.num_experts)
            if not self._why_fixed(x_TD, form):
                if len(CHOICES.chosen) >= MOST_KNOWN:
                    CHOICES.chosen.clear()
                CHOICES.chosen[key] = found
        return found

    def _new_choice(self, x_TD: Tensor, gates: Tensor, form: StandardForm, E: int) -> Choice:
        name, reason = self._decide(x_TD, gates.numel(), form, E)
        return Choice(name, reason, name == "textbook" and is_whole(x_TD, gates, form))

    def _decide(self, x_TD: Tensor, N: int, form: StandardForm, E: int) -> tuple[str, str]:
        if not N:
            return "grouped", "there are no pairs"
        if are_few(N, E, x_TD.device):
            return "grouped", "it has a path for a few pairs without gradients"
        cannot = self._cannot(x_TD, form)
        able = [name for name in LEAST_SAVED_FIRST if name not in cannot]
        if able == ["grouped"]:
            return "grouped", "; ".join(f"'{name}' cannot: {why}" for name, why in cannot.items())
        if why_fixed := self._why_fixed(x_TD, form):
            name, reason = by_rule(x_TD, N, E, form, cannot)
            return name, f"{reason} (by the fixed rule: {why_fixed})"
        if "fused" in able:  # then grouped takes longer and saves more
            large = numbers_of(x_TD, N, form) > TEXTBOOK_NEVER_FROM[has_gradients(x_TD, form)]
            able = [name for name in able if name != "grouped" and not (large and name == "textbook")]
        if len(able) == 1:
            return able[0], f"nothing else is worth timing for {N} pairs"
        return fastest(self._times(able, x_TD, form, size_of(x_TD.shape[0], N, E)))

    def _times(self, able: Sequence[str], x_TD: Tensor, form: StandardForm, size: Size) -> Times:
        """Milliseconds of dispatchers for calls of a size, measured now if they are unknown."""
        device = x_TD.device
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        grad = has_gradients(x_TD, form)
        text = (
            f"{size.text} in={x_TD.shape[1]} first={form.w_in_EHD.shape[1]} out={form.w_out_EOH.shape[1]} "
            f"activation={form.activation} gated={form.gated} dtype={x_TD.dtype} autocast={autocast} grad={grad} "
            f"save={self.spec.save} of={'/'.join(able)}"
        )
        machine = machine_of(device)
        known = CHOICES.get(machine, text)
        if known is None:
            dispatchers = {name: cast(Dispatcher, getattr(self, name)) for name in able}
            times = time_dispatchers(dispatchers, x_TD, form, size, grad=grad)
            known = CHOICES.put(machine, text, times) if times else {}
        return {name: taken for name, taken in known.items() if name in able}

    def _cannot(self, x_TD: Tensor, form: StandardForm) -> dict[str, str]:
        """Why dispatchers cannot take these tokens and weights; those that can are missing."""
        triton = self.triton.why_not(x_TD, form) or ("" if self.triton.installed else "the package is not installed")
        textbook = "" if can_group(x_TD, form.w_in_EHD) else "no grouped product takes these widths, dtype and device"
        if torch.compiler.is_compiling():
            textbook = "it is being compiled, and reads loads on the host"
        fused = onednn = why_not_fused(x_TD, form)
        if not self.has_onednn:
            onednn = "torch has no oneDNN here"
        elif x_TD.dtype != torch.float32:
            onednn = f"it takes fp32; tokens are {x_TD.dtype}"
        found = {"fused": fused, "onednn": onednn, "triton": triton, "textbook": textbook}
        return {name: why for name, why in found.items() if why}

    def _why_fixed(self, x_TD: Tensor, form: StandardForm) -> str:
        """Why nothing is timed, in words; empty if times choose."""
        if self.fixed:
            return self.fixed
        if torch.compiler.is_compiling():
            return "it is being compiled"
        if torch.are_deterministic_algorithms_enabled():
            return "torch must be deterministic"
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return "there are several processes"
        if is_observed() or not {type(x_TD), type(form.w_in_EHD), type(form.w_out_EOH)} <= PLAIN:
            return "operators are being recorded"
        capturing = x_TD.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        return "a CUDA graph is being captured" if capturing else ""


def has_gradients(x_TD: Tensor, form: StandardForm) -> bool:
    """Whether a call is one of training."""
    return torch.is_grad_enabled() and (x_TD.requires_grad or form.w_in_EHD.requires_grad)


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
    rows = N // num_experts
    work = rows * form.w_in_EHD[0].numel()
    reason = f"{N} pairs, {rows} rows per expert, {work / 1e6:.1f}M multiply-adds in its first product"
    if numbers_of(x_TD, N, form) <= TEXTBOOK_UP_TO and "textbook" not in cannot:
        return "textbook", reason
    return ("fused" if work >= FUSED_FROM and "fused" not in cannot else "grouped"), reason


def numbers_of(x_TD: Tensor, N: int, form: StandardForm) -> int:
    """Numbers that ``textbook`` makes for the rows of N pairs."""
    (out_dim, hidden), width = form.w_out_EOH.shape[1:], form.w_in_EHD.shape[1]
    return N * (x_TD.shape[1] + width + hidden + out_dim)


def machine_of(device: torch.device) -> str:
    """What times hold for: the device, its threads, and the versions of torch and moekit."""
    versions = f"torch {torch.__version__}, moekit {moekit.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    return f"{processor_name()}, {torch.get_num_threads()} threads, {versions}"
