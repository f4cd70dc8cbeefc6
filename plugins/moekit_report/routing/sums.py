"""What is summed of routings: plain sums over valid tokens, so that passes and ranks add up exactly.

Counts are int64 and everything else fp64 (fp32 on MPS, which has none), on the device of the routing. ``naive.py``
counts the same in loops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import LayerReport
from moekit.distributed import is_distributed
from moekit.router_math import autocast_off
from moekit.routing import ExpertChoice, Routing, TokenChoice

COUNTS = (
    "tokens", "padded_tokens", "pairs", "padded_pairs", "unsent_pairs", "dropped_pairs", "unsent_tokens",
    "dropped_tokens",
)  # fmt: skip
"""Counts of a layer, in the order of ``LayerSums.count_X``."""

MEANS = ("entropy", "first_gate", "margin", "logit_norm")
"""Means over the tokens that have one, in the order of ``LayerSums.total_X`` and of ``counted_X``."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Which experts each token was sent to, and with what gate.

    Attributes:
        sent_TE: bool; padding is sent to none.
        gate_TE: gates of the experts that a token was sent to; 0 for others.
    """

    sent_TE: Tensor
    gate_TE: Tensor

    def first_T(self) -> Tensor:
        """int64: the expert with the highest gate, of equal ones the lowest index; -1 for a token without expert."""
        gate_TE = self.gate_TE.masked_fill(~self.sent_TE, -torch.inf)
        experts_E = torch.arange(gate_TE.shape[1], device=gate_TE.device)
        is_first_TE = self.sent_TE & (gate_TE == gate_TE.amax(1, keepdim=True))
        first_T = torch.where(is_first_TE, experts_E, len(experts_E)).amin(1)
        return torch.where(first_T == len(experts_E), -1, first_T)


def sent_of(routing: Routing) -> Sent:
    """The pairs of a sparse routing as matrices.

    Raises:
        ValueError: the routing is soft.
    """
    scores_TE = routing.scores_TE
    sent_TE = torch.zeros_like(scores_TE, dtype=torch.bool)
    gate_TE = torch.zeros_like(scores_TE)
    if isinstance(routing, TokenChoice):
        counts_TK = routing.counts_TK()
        one_TK = torch.ones_like(routing.expert_TK, dtype=torch.bool) if counts_TK is None else counts_TK
        sent_TE.scatter_(1, routing.expert_TK, one_TK)
        gate_TE.scatter_(1, routing.expert_TK, routing.gate_TK.detach().to(gate_TE.dtype) * one_TK)
    elif isinstance(routing, ExpertChoice):
        sent_TE.mT.scatter_(1, routing.token_EC, True)
        gate_TE.mT.scatter_(1, routing.token_EC, routing.gate_EC.detach().to(gate_TE.dtype))
        if routing.valid_T is not None:
            sent_TE &= routing.valid_T[:, None]
            gate_TE *= routing.valid_T[:, None]
    else:
        raise ValueError(f"a routing of form '{routing.form}' sends every token to every expert")
    return Sent(sent_TE=sent_TE, gate_TE=gate_TE)


def layer_sums(report: LayerReport, bias_E: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sums of one layer in one forward pass.

    Args:
        report: of the layer.
        bias_E: the selection bias of that pass, if there is one.

    Returns:
        int64 ``[E + 8 + 4]``: the load, ``COUNTS``, and the tokens that each of ``MEANS`` counts. And floats
        ``[E + 4]``: each expert's summed gates, and the sums of ``MEANS``.
    """
    routing, load_E = report.routing, report.load_E
    wide = torch.float32 if load_E.device.type == "mps" else torch.float64
    T, valid_T = len(routing.scores_TE), routing.valid_T
    tokens, pairs, zero = routing.num_valid(), load_E.sum(), torch.zeros_like(load_E[0])
    padded = (T - tokens) * (tokens > 0)  # a rank without a batch validates one that is all padding
    choices = _choices(routing, bias_E, wide)
    lost = zero if report.dropped_tokens is None else report.dropped_tokens
    counts = [
        tokens, padded, pairs, padded * choices.options, tokens * choices.options - pairs if choices.options else zero,
        report.dropped, tokens - choices.has_T.sum(), lost,
    ]  # fmt: skip
    share_TE = routing.share_TE().detach()
    nats_T = -(share_TE * share_TE.clamp(min=torch.finfo(share_TE.dtype).tiny).log()).sum(1)
    gates_T = choices.gates_T
    per_token = {
        "entropy": (nats_T / math.log(2), valid_T),
        "first_gate": (choices.highest_T / gates_T, choices.has_T & (gates_T > 0)),
        "margin": (choices.margin_T, choices.has_margin_T),
        "logit_norm": (torch.linalg.vector_norm(routing.logits_TE.detach(), dim=1), valid_T),
    }
    totals, counted = [], []
    for name in MEANS:
        value_T, counts_T = per_token[name]
        totals.append((value_T if counts_T is None else value_T.where(counts_T, 0)).sum(dtype=wide))
        counted.append(tokens if counts_T is None else counts_T.sum())
    return torch.cat([load_E, torch.stack(counts + counted)]), torch.cat([choices.importance_E, torch.stack(totals)])


@dataclass(frozen=True, kw_only=True)
class _Choices:
    """What the sums need of a routing.

    Attributes:
        options: experts that a token chose, sent or not; 0 where experts choose tokens.
        has_T: bool: tokens with an expert.
        gates_T, highest_T: the sum and the highest of a token's gates.
        margin_T, has_margin_T: how far a token's lowest chosen score is above its highest other one; and whether it
            has both.
        importance_E: each expert's summed gates.
    """

    options: int
    has_T: Tensor
    gates_T: Tensor
    highest_T: Tensor
    margin_T: Tensor
    has_margin_T: Tensor
    importance_E: Tensor


def _choices(routing: Routing, bias_E: Tensor | None, wide: torch.dtype) -> _Choices:
    scores_TE = routing.scores_TE.detach()
    if not isinstance(routing, TokenChoice):
        sent = sent_of(routing)
        has_T = sent.sent_TE.any(1)
        return _Choices(
            options=0, has_T=has_T, gates_T=sent.gate_TE.sum(1), highest_T=sent.gate_TE.amax(1),
            margin_T=scores_TE[:, 0], has_margin_T=torch.zeros_like(has_T),
            importance_E=sent.gate_TE.sum(0, dtype=wide),
        )  # fmt: skip
    expert_TK, gate_TK, counts_TK = routing.expert_TK, routing.gate_TK.detach(), routing.counts_TK()
    K, E = expert_TK.shape[1], scores_TE.shape[1]
    scores_TE = scores_TE if bias_E is None else scores_TE + bias_E
    lowest_TK = scores_TE.gather(1, expert_TK)
    others_TK = torch.full_like(lowest_TK, -torch.inf)
    if counts_TK is None:
        has_T = torch.ones_like(expert_TK[:, 0], dtype=torch.bool)
        has_margin_T = has_T if K < E else ~has_T
    else:
        others_TK = torch.where(counts_TK, others_TK, lowest_TK)
        lowest_TK = lowest_TK.masked_fill(~counts_TK, torch.inf)
        gate_TK = gate_TK * counts_TK
        num_T = counts_TK.sum(1)
        has_T, has_margin_T = num_T > 0, (num_T > 0) & (num_T < E)
    zero_E = torch.zeros(E, dtype=wide, device=gate_TK.device)
    return _Choices(
        options=K, has_T=has_T, gates_T=gate_TK.sum(1), highest_T=gate_TK.amax(1),
        margin_T=lowest_TK.amin(1) - scores_TE.scatter(1, expert_TK, others_TK).amax(1), has_margin_T=has_margin_T,
        importance_E=zero_E.scatter_add(0, expert_TK.flatten(), gate_TK.flatten().to(wide)),
    )  # fmt: skip


def pairs_EE(sent: Sent) -> Tensor:
    """int64 ``[E, E]``: the tokens that were sent to both experts."""
    sent_TE = sent.sent_TE.to(torch.float32)  # sums of up to 2^24 ones are exact
    with autocast_off(sent_TE.device):
        return (sent_TE.mT @ sent_TE).long()


def load_by(label_T: Tensor, num_labels: int, sent: Sent) -> Tensor:
    """int64 ``[X, E]``: the load of each expert by a label of the tokens, one of X; those of -1 are not counted."""
    load_XE = torch.zeros(num_labels + 1, sent.sent_TE.shape[1], dtype=torch.int64, device=label_T.device)
    return load_XE.index_add_(0, label_T.where(label_T >= 0, num_labels), sent.sent_TE.long())[:-1]


class Sums:
    """Tensors by name that are summed over passes and ranks. All ranks add the same names in the same order."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, name: str, value: Tensor) -> None:
        """Adds a tensor. Nothing is copied to the host."""
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self) -> Mapping[str, Tensor]:
        """The sums over all ranks, on the host: one all-reduce for each type. Resets them."""
        sums, self._sums = self._sums, {}
        out: dict[str, Tensor] = {}
        for dtype in {value.dtype: None for value in sums.values()}:
            some = {name: value for name, value in sums.items() if value.dtype == dtype}
            flat = torch.cat([value.flatten() for value in some.values()])
            if is_distributed():
                dist.all_reduce(flat)
            parts = torch.split(flat.cpu(), [value.numel() for value in some.values()])
            out |= {name: part.view(some[name].shape) for name, part in zip(some, parts, strict=True)}
        return out
