"""The device-level loss as loops over sequences, devices, experts and tokens, from the equations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def loss(
    scores_TE: Tensor,
    chosen: Sequence[Sequence[int]],
    groups: int,
    *,
    valid: Sequence[bool] | None = None,
    num_sequences: int = 1,
) -> Tensor:
    """``sum_i f''_i P''_i`` of each sequence, averaged by their numbers of valid tokens.

    Args:
        scores_TE: affinities.
        chosen: the experts each token was sent to; K is their mean number.
        groups: G, devices.
        valid: False for padding.
        num_sequences: B; the tokens are B sequences of equal length, one after the other.
    """
    T, E = scores_TE.shape
    length = T // num_sequences if num_sequences else 0
    total, num_tokens = scores_TE.new_zeros(()), 0
    for b in range(num_sequences):
        tokens = [t for t in range(b * length, (b + 1) * length) if valid is None or valid[t]]
        num_tokens += len(tokens)
        K_times_T = sum(len(chosen[t]) for t in tokens)
        if not K_times_T:
            continue
        value = scores_TE.new_zeros(())
        for i in range(groups):
            on_device = range(i * E // groups, (i + 1) * E // groups)
            f, P = 0.0, scores_TE.new_zeros(())
            for e in on_device:
                f += E / K_times_T * sum(e in chosen[t] for t in tokens) / len(on_device)
                for t in tokens:
                    P = P + scores_TE[t, e] / scores_TE[t].sum() / len(tokens)
            value = value + f * P
        total = total + len(tokens) * value
    return total / max(num_tokens, 1)
