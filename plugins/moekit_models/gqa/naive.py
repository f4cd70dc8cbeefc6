"""Reference implementation of grouped-query attention: one sequence, head and position at a time."""

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
    kv_heads: int,
    theta: float,
    eps: float,
    yarn: Mapping[str, float] | None = None,
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
        yarn: its constants, named as in ``frequency``; None without.
    """
    S = x_SD.shape[0]
    R = weights["q.weight"].shape[0] // heads
    out = []
    for s in range(S):
        parts = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            query = head(x_SD[s], weights, "q", h, R, s, theta, eps, yarn)
            score = torch.stack(
                [
                    query @ head(x_SD[t], weights, "k", g, R, t, theta, eps, yarn) / (math.sqrt(R) * temperature(yarn))
                    for t in range(s + 1)
                ]
            )
            share = score.exp() / score.exp().sum()
            value = [weights["v.weight"][g * R : (g + 1) * R] @ x_SD[t] for t in range(s + 1)]
            parts.append(sum((share[t] * value[t] for t in range(s + 1)), torch.zeros_like(value[0])))
        out.append(weights["out.weight"] @ torch.cat(parts))
    return torch.stack(out)


def head(
    x_D: Tensor,
    weights: Mapping[str, Tensor],
    name: str,
    h: int,
    R: int,
    s: int,
    theta: float,
    eps: float,
    yarn: Mapping[str, float] | None,
) -> Tensor:
    """Query or key of head ``h`` at position ``s``: projected, normed if there is a norm, rotated."""
    u = weights[f"{name}.weight"][h * R : (h + 1) * R] @ x_D
    if f"{name}_norm.weight" in weights:
        u = u / torch.sqrt((u * u).mean() + eps) * weights[f"{name}_norm.weight"]
    return turn(u, s, theta, yarn)


def turn(u_X: Tensor, s: int, theta: float, yarn: Mapping[str, float] | None) -> Tensor:
    """Rotates the pair (i, i + R/2) by the angle ``s · frequency``, one pair at a time."""
    R = u_X.shape[0]
    out = [u_X[0]] * R
    for i in range(R // 2):
        angle = s * frequency(i, R, theta, yarn)
        a, b = u_X[i], u_X[i + R // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + R // 2] = a * math.sin(angle) + b * math.cos(angle)
    return torch.stack(out)


def frequency(i: int, R: int, theta: float, yarn: Mapping[str, float] | None) -> float:
    """Radians by which pair i turns a position: ``theta^(-2i/R)``; under YaRN that, that over s, or a mean of both.

    Args:
        i: the pair, of R/2.
        R: width of the rotary part.
        theta: base of the angles.
        yarn: ``s``, ``L``, ``alpha``, ``beta``, ``m``, and ``by_index`` (1: a ramp over whole indices, as in released
            code; 0: over turns, as the paper has it).
    """
    plain = math.pow(theta, -2 * i / R)
    if yarn is None:
        return plain
    if yarn["by_index"]:
        first = math.floor(R * math.log(yarn["L"] / (yarn["beta"] * 2 * math.pi)) / (2 * math.log(theta)))
        last = math.ceil(R * math.log(yarn["L"] / (yarn["alpha"] * 2 * math.pi)) / (2 * math.log(theta)))
        first, last = max(first, 0), min(last, R - 1)
        if i <= first:
            gamma = 1.0
        elif i >= last:
            gamma = 0.0
        else:
            gamma = 1 - (i - first) / (last - first)
    else:
        wavelength = 2 * math.pi / plain
        turns = yarn["L"] / wavelength
        if turns < yarn["alpha"]:
            gamma = 0.0
        elif turns > yarn["beta"]:
            gamma = 1.0
        else:
            gamma = (turns - yarn["alpha"]) / (yarn["beta"] - yarn["alpha"])
    return (1 - gamma) * plain / yarn["s"] + gamma * plain


def temperature(yarn: Mapping[str, float] | None) -> float:
    """t, which scores are divided by: ``sqrt(1/t) = m ln s + 1``; 1 without YaRN."""
    return 1.0 if yarn is None else 1 / math.pow(yarn["m"] * math.log(yarn["s"]) + 1, 2)
