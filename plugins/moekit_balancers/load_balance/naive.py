"""The f·P loss as loops over sequences, tokens and experts, from the equation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def loss(
    scores_TE: Tensor,
    chosen: Sequence[Sequence[int]],
    *,
    valid: Sequence[bool] | None = None,
    num_sequences: int = 1,
    normalize: bool = True,
    fraction: Sequence[float] | None = None,
) -> Tensor:
    """``E/K · sum_e f_e P_e`` of each sequence, averaged by their numbers of valid tokens.

    Args:
        scores_TE: affinities.
        chosen: the experts of each token that f counts; K is their mean number.
        valid: False for padding.
        num_sequences: B; the tokens are B sequences of equal length, one after the other.
        normalize: whether a token's affinities are divided by their sum.
        fraction: f_e; default: counted from ``chosen``.
    """
    T, E = scores_TE.shape
    length = T // num_sequences if num_sequences else 0
    total, num_tokens = scores_TE.new_zeros(()), 0
    for b in range(num_sequences):
        tokens = [t for t in range(b * length, (b + 1) * length) if valid is None or valid[t]]
        if not tokens:
            continue
        K = sum(len(chosen[t]) for t in tokens) / len(tokens)
        num_tokens += len(tokens)
        if not K:
            continue
        value = scores_TE.new_zeros(())
        for e in range(E):
            f = fraction[e] if fraction is not None else sum(e in chosen[t] for t in tokens) / len(tokens)
            P = scores_TE.new_zeros(())
            for t in tokens:
                P = P + (scores_TE[t, e] / scores_TE[t].sum() if normalize else scores_TE[t, e]) / len(tokens)
            value = value + E / K * f * P
        total = total + len(tokens) * value
    return total / num_tokens if num_tokens else torch.zeros_like(total)
