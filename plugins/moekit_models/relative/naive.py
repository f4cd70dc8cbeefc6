"""Reference implementation of attention with relative position biases: one query, one head, one key at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def attend(
    x_SD: Tensor,
    weights: Mapping[str, Tensor],
    *,
    heads: int,
    causal: bool,
    buckets: int,
    max_distance: int,
    scale: float,
) -> Tensor:
    """``y_SD`` of one sequence without padding.

    Args:
        x_SD: the sequence.
        weights: ``q.weight``, ``k.weight``, ``v.weight``, ``out.weight``, and ``bias.weight`` ``[buckets, heads]``.
        heads: heads.
        causal: whether a position attends to none after it.
        buckets: numbers that a head learns.
        max_distance: positions this far apart share the last bucket.
        scale: factor of dot products.
    """
    S = x_SD.shape[0]
    R = weights["q.weight"].shape[0] // heads
    out = []
    for i in range(S):
        parts = []
        for h in range(heads):
            w = {name: weights[f"{name}.weight"][h * R : (h + 1) * R] for name in ("q", "k", "v")}
            seen = range(i + 1) if causal else range(S)
            score = []
            for j in seen:
                place = bucket(j - i, not causal, buckets, max_distance)
                score.append(scale * ((w["q"] @ x_SD[i]) @ (w["k"] @ x_SD[j])) + weights["bias.weight"][place, h])
            total = sum((s.exp() for s in score), torch.zeros_like(score[0]))
            value = torch.zeros_like(w["v"] @ x_SD[0])
            for s, j in zip(score, seen, strict=True):
                value = value + s.exp() / total * (w["v"] @ x_SD[j])
            parts.append(value)
        out.append(weights["out.weight"] @ torch.cat(parts))
    return torch.stack(out)


def bucket(distance: int, both: bool, buckets: int, max_distance: int) -> int:
    """T5's function of the key's position minus the query's; ``both``: whether queries attend to later keys."""
    first = 0
    if both:
        buckets //= 2
        first = buckets if distance > 0 else 0
        n = abs(distance)
    else:
        n = max(-distance, 0)
    exact = buckets // 2
    if n < exact:
        return first + n
    steps = math.log(n / exact) / math.log(max_distance / exact) * (buckets - exact)
    return first + min(exact + math.floor(steps + 1e-9), buckets - 1)
