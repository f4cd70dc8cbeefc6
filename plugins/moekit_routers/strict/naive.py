"""Strictly balanced gating as loops over tokens and experts, from the appendix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """``kept[t]``: the experts of token t, ascending; gates by expert, 0 for others.

    ``loss`` is that of the thresholds, None in evaluation.
    """

    kept: list[list[int]]
    gate_TE: Tensor
    loss: Tensor | None


def softmax(z: Sequence[Tensor]) -> list[Tensor]:
    """``exp(z_e) / sum_j exp(z_j)``."""
    largest = max(z_e.item() for z_e in z)
    odds = [torch.exp(z_e - largest) for z_e in z]
    return [odd / sum(odds[1:], odds[0]) for odd in odds]


def route(
    x_TD: Tensor,
    weight_ED: Tensor,
    threshold_E: Tensor,
    *,
    top_k: int,
    training: bool,
    valid: Sequence[bool] | None = None,
) -> Routed:
    """Routes a batch: in training each expert keeps its best tokens; in evaluation each token passes thresholds."""
    T, E = x_TD.shape[0], weight_ED.shape[0]
    tokens = [t for t in range(T) if valid is None or valid[t]]
    X = [softmax([(weight_ED[e] * x_TD[t]).sum() for e in range(E)]) for t in range(T)]
    passes = {(t, e) for t in range(T) for e in range(E) if X[t][e].item() > threshold_E[e].item()}
    kept, loss = passes, None
    if training:
        m = max(top_k * len(tokens) // E, 1)
        kept = {(t, e) for e in range(E) for t in sorted(tokens, key=lambda t: (-X[t][e].item(), t))[:m]}
        loss = threshold_E.new_zeros(())
        for t in tokens:
            for e in range(E):
                disagree = ((t, e) in passes) - ((t, e) in kept)
                loss = loss + disagree * (X[t][e].detach() - threshold_E[e]) / len(tokens)
    gates = []
    for t in range(T):
        masked = [X[t][e] if (t, e) in kept else X[t][e] * 0 for e in range(E)]
        total = sum(masked[1:], masked[0])
        gates.append(torch.stack([g / total if total.item() else g for g in masked]))
    gate_TE = torch.stack(gates) if gates else x_TD.new_zeros(0, E)
    return Routed([[e for e in range(E) if (t, e) in kept] for t in range(T)], gate_TE, loss)
