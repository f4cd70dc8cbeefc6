"""The sequence-wise loss as loops over sequences, tokens and experts, from the equations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def loss(
    scores_TE: Tensor,
    chosen: Sequence[Sequence[int]],
    *,
    valid: Sequence[bool] | None = None,
    num_sequences: int = 1,
    count: str = "routed",
) -> Tensor:
    """``sum_e f_e P_e`` of each sequence, averaged by their numbers of valid tokens.

    Args:
        scores_TE: affinities.
        chosen: the experts each token was sent to; K is their mean number.
        valid: False for padding.
        num_sequences: B; the tokens are B sequences of equal length, one after the other.
        count: ``"routed"``: f counts the chosen; ``"affinity"``: f counts the K of highest affinity.
    """
    T, E = scores_TE.shape
    length = T // num_sequences if num_sequences else 0
    values = []  # (number of valid tokens, loss) of each sequence that has valid tokens
    for b in range(num_sequences):
        tokens = [t for t in range(b * length, (b + 1) * length) if valid is None or valid[t]]
        if not tokens:
            continue
        counted = {}
        for t in tokens:
            by_affinity = sorted(range(E), key=lambda e: (-scores_TE[t, e].item(), e))
            counted[t] = list(chosen[t]) if count == "routed" else by_affinity[: len(chosen[t])]
        K = sum(len(experts) for experts in counted.values()) / len(tokens)
        value = scores_TE.new_zeros(())
        for e in range(E):
            f = E / (K * len(tokens)) * sum(e in counted[t] for t in tokens) if K else 0.0
            P = scores_TE.new_zeros(())
            for t in tokens:
                P = P + scores_TE[t, e] / scores_TE[t].sum()
            value = value + f * P / len(tokens)
        values.append((len(tokens), value))
    num_tokens = sum(n for n, _ in values)
    return sum((n * value / num_tokens for n, value in values), scores_TE.new_zeros(()))
