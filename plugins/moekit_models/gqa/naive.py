"""Oracle of grouped-query attention: one sequence, one head, one position at a time, straight from the equations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def attend(
    x_SD: Tensor, weights: Mapping[str, Tensor], *, heads: int, kv_heads: int, theta: float, eps: float
) -> Tensor:
    """``y_SD`` of one sequence.

    Args:
        x_SD: the sequence.
        weights: ``q.weight``, ``k.weight``, ``v.weight``, ``out.weight``, and, for heads that are normed first,
            ``q_norm.weight`` and ``k_norm.weight``.
        heads: query heads.
        kv_heads: key and value heads; query head h reads ``h // (heads / kv_heads)``.
        theta: base of the rotary angles.
        eps: added inside the norms' square root.
    """
    S = x_SD.shape[0]
    R = weights["q.weight"].shape[0] // heads
    out = []
    for s in range(S):
        parts = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            query = head(x_SD[s], weights, "q", h, R, s, theta, eps)
            score = torch.stack(
                [query @ head(x_SD[t], weights, "k", g, R, t, theta, eps) / math.sqrt(R) for t in range(s + 1)]
            )
            share = score.exp() / score.exp().sum()
            value = [weights["v.weight"][g * R : (g + 1) * R] @ x_SD[t] for t in range(s + 1)]
            parts.append(sum((share[t] * value[t] for t in range(s + 1)), torch.zeros_like(value[0])))
        out.append(weights["out.weight"] @ torch.cat(parts))
    return torch.stack(out)


def head(
    x_D: Tensor, weights: Mapping[str, Tensor], name: str, h: int, R: int, s: int, theta: float, eps: float
) -> Tensor:
    """Query or key of head ``h`` at position ``s``: projected, normed where there is a norm, turned."""
    u = weights[f"{name}.weight"][h * R : (h + 1) * R] @ x_D
    if f"{name}_norm.weight" in weights:
        u = u / torch.sqrt((u * u).mean() + eps) * weights[f"{name}_norm.weight"]
    return turn(u, s, theta)


def turn(u_X: Tensor, s: int, theta: float) -> Tensor:
    """Turns the pair (i, i + R/2) by the angle ``s · theta^(-2i/R)``, one pair at a time."""
    R = u_X.shape[0]
    out = [u_X[0]] * R
    for i in range(R // 2):
        angle = s * theta ** (-2 * i / R)
        a, b = u_X[i], u_X[i + R // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + R // 2] = a * math.sin(angle) + b * math.cos(angle)
    return torch.stack(out)
