"""How long dispatchers take for tokens and experts of some size: the best of a few rounds with a small sample."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, StandardForm
from moekit.contracts.layer import Groups
from moekit.routing import TokenChoice
from moekit_dispatchers.auto.choices import Times
from moekit_dispatchers.textbook.whole import ACTIVATIONS

ROUNDS = 40
"""At most so many rounds; every dispatcher runs once in each, every second time in reverse order, so that a busy moment
and what the one before leaves in the cache hit all alike. The best round counts, because other processes only lengthen
a round. The first one, in which all are tried, does not count."""

SECONDS = 0.4
"""No round begins after this time but the first that counts."""

HOPELESS = (3.0, 1.5, 1.25, 1.1)
"""After each round, and after all later ones, how many times the shortest time makes a dispatcher hopeless."""

CHEAP = 0.01
"""Seconds of a round up to which a dispatcher is timed further although it is hopeless: a busy moment is as long."""

MOST_WORK = 1 << 29
"""Multiply-adds of the first product beyond which fewer experts are timed, each with as many rows."""


class Size(NamedTuple):
    """What the time depends on; alike for sizes that differ by less than a factor of two.

    Attributes:
        rows: of an expert at even load, a power of two.
        experts: E, a power of two.
        top_k: experts of a token, at least 1.
    """

    rows: int
    experts: int
    top_k: int

    @property
    def text(self) -> str:
        """As it is in a file."""
        return f"rows={self.rows} experts={self.experts} top_k={self.top_k}"


def size_of(num_tokens: int, num_pairs: int, num_experts: int) -> Size:
    """The size of a call, each number rounded down to a power of two, and at least 1."""

    def power(number: int) -> int:
        return 1 << max(0, number.bit_length() - 1)

    return Size(power(num_pairs // num_experts), power(num_experts), power(round(num_pairs / max(1, num_tokens))))


class FormBank(ExpertBank):
    """Experts of a standard form, whose weights are views of another module's."""

    def __init__(self, form: StandardForm) -> None:
        super().__init__()
        self.form = form
        self.num_experts, self.out_dim = form.w_out_EOH.shape[:2]

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: what the standard form defines."""
        form, act = self.form, ACTIVATIONS[self.form.activation]
        h_NX = groups.linear(x_ND, form.w_in_EHD)
        if form.gated:
            gate_NH, up_NH = h_NX.chunk(2, dim=-1)
            h_NX = act(gate_NH) * up_NH
        else:
            h_NX = act(h_NX)
        return groups.linear(h_NX, form.w_out_EOH)

    def standard_form(self) -> StandardForm:
        """The form."""
        return self.form


def time_dispatchers(
    dispatchers: Mapping[str, Dispatcher], x_TD: Tensor, form: StandardForm, size: Size, *, grad: bool
) -> Times:
    """Milliseconds of each dispatcher, with weights of this form and tokens like these; less than a second in all.

    Neither autograd, nor the random generator, nor any tensor of the caller is changed.

    Args:
        dispatchers: to be timed, by name.
        x_TD: gives dtype, device and width.
        form: of all experts; some of them are used.
        size: of the call.
        grad: whether backward is timed too.
    """
    work = size.rows * form.w_in_EHD[0].numel()
    E = max(1, min(form.w_in_EHD.shape[0], MOST_WORK // max(1, work)))
    w_in_EHD, w_out_EOH = (w[:E].detach().requires_grad_(grad) for w in (form.w_in_EHD, form.w_out_EOH))
    bank = FormBank(replace(form, w_in_EHD=w_in_EHD, w_out_EOH=w_out_EOH))
    x_TD, routing = _sample(x_TD, size.rows, E, min(size.top_k, E), grad=grad)
    leaves = [x_TD, routing.gate_TK, w_in_EHD, w_out_EOH]

    # The processor's time of one thread does not grow while other processes run.
    clock = time.thread_time if x_TD.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def seconds(dispatcher: Dispatcher) -> float:
        _wait_for(x_TD)
        start = clock()
        # Hooks of a caller that recomputes activations must not see what is saved here.
        with torch.set_grad_enabled(grad), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            y_TO = dispatcher(x_TD, routing, bank).y_TO
        if grad:
            torch.autograd.grad(y_TO, leaves, y_TO.detach())
        _wait_for(x_TD)
        return clock() - start

    best: dict[str, float] = {}
    for name, dispatcher in dispatchers.items():
        with suppress(Exception):  # of a kernel that this device lacks, or its memory: the others are timed
            best[name] = seconds(dispatcher)
    spent = sum(best.values())
    for n in range(ROUNDS):
        enough = max(CHEAP, HOPELESS[min(n, len(HOPELESS) - 1)] * min(best.values(), default=0))
        left = [name for name, taken in best.items() if taken <= enough]
        if n and (len(left) < 2 or spent > SECONDS):
            break
        for name in left if n % 2 else reversed(left):
            taken = seconds(dispatchers[name])
            best[name] = min(best[name], taken) if n else taken
            spent += taken
    return {name: round(1000 * taken, 4) for name, taken in best.items()}


def _sample(x_TD: Tensor, rows: int, E: int, K: int, *, grad: bool) -> tuple[Tensor, TokenChoice]:
    """Tokens and a routing in which each of E experts has about ``rows`` rows; K experts of a token."""
    T = max(1, rows * E // K)
    generator = torch.Generator().manual_seed(0)
    device, dtype = x_TD.device, x_TD.dtype
    scores_TE = torch.rand(T, E, generator=generator, device="cpu").to(device)
    x_TD = torch.randn(T, x_TD.shape[1], generator=generator, device="cpu").to(device, dtype).requires_grad_(grad)
    gate_TK, expert_TK = scores_TE.to(torch.promote_types(dtype, torch.float32)).topk(K)
    gate_TK.requires_grad_(grad)
    return x_TD, TokenChoice(logits_TE=scores_TE, scores_TE=scores_TE, expert_TK=expert_TK, gate_TK=gate_TK)


def _wait_for(x_TD: Tensor) -> None:
    if x_TD.device.type == "cuda":
        torch.cuda.synchronize(x_TD.device)


def _same(x: Tensor) -> Tensor:
    return x
