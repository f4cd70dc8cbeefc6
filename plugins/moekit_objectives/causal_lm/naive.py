"""Reference implementation of next- and multi-token prediction: one position at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_loss(tokens_BT: Tensor, probs: Sequence[Tensor], weight: float) -> Tensor:
    """``L + weight/depth · sum_k L_k``, with ``L_k = -(1/T) sum_i log P_k(t_{i+k+1})`` over tokens that exist.

    Args:
        tokens_BT: each text: its inputs are all but the last, its targets all but the first (T of them).
        probs: entry k ``[B, T - k, V]``: at position i the probabilities of the token ``i + k + 1``.
        weight: lambda.
    """
    B, T = tokens_BT.shape[0], tokens_BT.shape[1] - 1
    losses = []
    for k, probs_BSV in enumerate(probs):
        terms = []
        for b in range(B):
            for i in range(T):
                if i + k + 1 <= T:
                    terms.append(-torch.log(probs_BSV[b, i, tokens_BT[b, i + k + 1]]))
        losses.append(torch.stack(terms).sum() / (B * T))
    depth = len(probs) - 1
    return losses[0] + (weight / depth * torch.stack(losses[1:]).sum() if depth else 0)


def mean_squared_z(logits_BSV: Tensor, valid_BS: Tensor) -> Tensor:
    """The mean over valid positions of the squared logarithm of the softmax's denominator (``t5x/losses.py``)."""
    terms = [
        torch.log(torch.stack([torch.exp(z) for z in logits_BSV[b, i]]).sum()) ** 2
        for b in range(valid_BS.shape[0])
        for i in range(valid_BS.shape[1])
        if valid_BS[b, i]
    ]
    return torch.stack(terms).mean()


def pooled_balance(logits: Sequence[Tensor], valid_T: Tensor, top_k: int) -> Tensor:
    """``E · sum_e f_e · P_e``, token by token and layer by layer, each layer with logits ``[T, E]``."""
    E = logits[0].shape[1]
    chosen, share, tokens = [0] * E, [torch.zeros((), dtype=logits[0].dtype)] * E, 0
    for logits_TE in logits:
        for t in range(len(valid_T)):
            if not valid_T[t]:
                continue
            tokens += 1
            z = logits_TE[t].tolist()
            for e in sorted(range(E), key=lambda e, z=z: (-z[e], e))[:top_k]:  # type: ignore[misc]
                chosen[e] += 1
            for e in range(E):
                share[e] = share[e] + torch.exp(logits_TE[t, e]) / torch.exp(logits_TE[t]).sum()
    return E * torch.stack([chosen[e] / tokens * share[e] / tokens for e in range(E)]).sum()


def weight_at(tokens_done: float, *, early: float, late: float, turn: float) -> float:
    """Lambda after so many tokens: ``early`` for the first ``turn`` tokens, ``late`` for the rest (section 4.2)."""
    return early if tokens_done < turn else late


def exact(probs_BSV: Tensor, targets_BS: Tensor, valid_BS: Tensor) -> tuple[int, int]:
    """Sequences whose every valid target has the largest probability (ties go to the lowest); those with any."""
    right = counted = 0
    for probs_SV, targets_S, valid_S in zip(probs_BSV.tolist(), targets_BS.tolist(), valid_BS.tolist(), strict=True):
        hits = [p.index(max(p)) == t for p, t, v in zip(probs_SV, targets_S, valid_S, strict=True) if v]
        counted += bool(hits)
        right += bool(hits) and all(hits)
    return right, counted
