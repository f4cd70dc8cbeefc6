"""Reference implementation of grouped-query attention: one sequence, head and position at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    norm_over: str = "head",
    clip: float = math.inf,
    rotary: int = 0,
    window: int = 0,
    longer: Mapping[str, Any] | None = None,
    chunk: int = 0,
    normed: bool = False,
    temperature: tuple[float, int] | None = None,
) -> Tensor:
    """``y_SD`` of one sequence.

    Args:
        x_SD: the sequence.
        weights: ``q.weight``, ``k.weight``, ``v.weight``, ``out.weight``; if there are any, the same with ``.bias``,
            ``q_norm.weight`` and ``k_norm.weight``, ``b_sink_X``.
        heads: query heads.
        kv_heads: key and value heads; query head h reads ``h // (heads / kv_heads)``.
        theta: base of the rotary angles.
        eps: added inside the norms' square root.
        yarn: its constants, named as in ``frequency``; None without.
        norm_over: ``head`` or ``all``: what one norm covers.
        clip: bound of queries, keys and values.
        rotary: how many dimensions of a head are rotated; 0 for all, -1 for none.
        window: how many positions are seen, the own included; 0 for all.
        chunk: how many positions one run has, within which one is seen; 0 for one run.
        normed: whether heads are normed although there is no norm's weight.
        temperature: a and f of ``1 + a ln(1 + floor((s + 1) / f))``, by which queries are multiplied.
        longer: arguments of ``stretched``, and ``scale``, by which rotated parts are multiplied.
    """
    S = x_SD.shape[0]
    R = weights["q.weight"].shape[0] // heads
    how = Heads(R, theta, eps, yarn, norm_over, clip, rotary, normed, longer and {"n": S, **longer})
    out = []
    for s in range(S):
        parts = []
        first = max(0, s - window + 1) if window else 0
        seen = [t for t in range(first, s + 1) if not chunk or t // chunk == s // chunk]
        for h in range(heads):
            g = h // (heads // kv_heads)
            query = head(x_SD[s], weights, "q", h, s, how)
            if temperature is not None:
                query = query * (1 + temperature[0] * math.log(1 + (s + 1) // temperature[1]))
            score = [
                query @ head(x_SD[t], weights, "k", g, t, how) / (math.sqrt(R) * yarn_temperature(yarn)) for t in seen
            ]
            odds = [torch.exp(each) for each in score]
            total = torch.stack(odds).sum() + (torch.exp(weights["b_sink_X"][h]) if "b_sink_X" in weights else 0)
            value = [project(x_SD[t], weights, "v", clip)[g * R : (g + 1) * R] for t in seen]
            parts.append(sum((o / total * v for o, v in zip(odds, value, strict=True)), torch.zeros_like(value[0])))
        out.append(project(torch.cat(parts), weights, "out", math.inf))
    return torch.stack(out)


@dataclass(frozen=True)
class Heads:
    """How queries and keys are made: the width of a head, and the options of ``attend``."""

    width: int
    theta: float
    eps: float
    yarn: Mapping[str, float] | None = None
    norm_over: str = "head"
    clip: float = math.inf
    rotary: int = 0
    normed: bool = False
    longer: Mapping[str, Any] | None = None


def project(x_D: Tensor, weights: Mapping[str, Tensor], name: str, clip: float) -> Tensor:
    """``W x + b``, clamped to ± clip."""
    y = weights[f"{name}.weight"] @ x_D
    if f"{name}.bias" in weights:
        y = y + weights[f"{name}.bias"]
    return torch.clamp(y, -clip, clip)


def head(x_D: Tensor, weights: Mapping[str, Tensor], name: str, h: int, s: int, how: Heads) -> Tensor:
    """Query or key of head ``h`` at position ``s``: projected, normed if there is a norm, clamped, rotated."""
    R = how.width
    u = project(x_D, weights, name, math.inf)
    scale = weights.get(f"{name}_norm.weight", torch.ones_like(u[:1]) if how.normed else None)
    if scale is not None and how.norm_over == "all":
        u = u / torch.sqrt((u * u).mean() + how.eps) * scale
    u = u[h * R : (h + 1) * R]
    if scale is not None and how.norm_over == "head":
        u = u / torch.sqrt((u * u).mean() + how.eps) * scale
    u = torch.clamp(u, -how.clip, how.clip)
    turned = max(how.rotary, 0) if how.rotary else R
    if not turned:
        return u
    if how.longer is None:
        return torch.cat([turn(u[:turned], s, how.theta, how.yarn), u[turned:]])
    rule = {name: value for name, value in how.longer.items() if name != "scale"}
    angles = [s * stretched(i, turned, how.theta, **rule) for i in range(turned // 2)]
    return torch.cat([how.longer.get("scale", 1.0) * turn_by(u[:turned], angles), u[turned:]])


def turn(u_X: Tensor, s: int, theta: float, yarn: Mapping[str, float] | None) -> Tensor:
    """Rotates the pair (i, i + R/2) by the angle ``s · frequency``, one pair at a time."""
    R = u_X.shape[0]
    return turn_by(u_X, [s * frequency(i, R, theta, yarn) for i in range(R // 2)])


def turn_by(u_X: Tensor, angles: Sequence[float]) -> Tensor:
    """Rotates the pair (i, i + R/2) by the i-th angle."""
    R = u_X.shape[0]
    out = [u_X[0]] * R
    for i, angle in enumerate(angles):
        a, b = u_X[i], u_X[i + R // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + R // 2] = a * math.sin(angle) + b * math.cos(angle)
    return torch.stack(out)


def stretched(
    i: int,
    R: int,
    theta: float,
    n: int,
    *,
    rule: str,
    s: float = 1.0,
    L: int = 0,
    short: Sequence[float] = (),
    long: Sequence[float] = (),
) -> float:
    """Radians by which pair i turns a position in a text of n positions, by a rule other than YaRN's.

    ``linear``: the angle over s. ``dynamic``: the base ``theta (s·n/L - (s - 1))^(R/(R - 2))`` where n > L. ``long``:
    the angle over the pair's number in ``short``, or in ``long`` where n > L.
    """  # fmt: skip
    if rule == "linear":
        return math.pow(theta, -2 * i / R) / s
    if rule == "dynamic":
        grown = s * max(n, L) / L - (s - 1)
        return math.pow(theta * math.pow(grown, R / (R - 2)), -2 * i / R)
    return math.pow(theta, -2 * i / R) / (long[i] if n > L else short[i])


def frequency(i: int, R: int, theta: float, yarn: Mapping[str, float] | None) -> float:
    """Radians by which pair i turns a position: ``theta^(-2i/R)``; under YaRN that, that over s, or a mean of both.

    Args:
        i: the pair, of R/2.
        R: width of the rotary part.
        theta: base of the angles.
        yarn: ``s``, ``L``, ``alpha``, ``beta``, ``m``, and ``by_index`` (1: a ramp over whole indices, as in released
            code; 0: over turns, as the paper has it), ``whole`` (0: its bounds are not rounded).
    """
    plain = math.pow(theta, -2 * i / R)
    if yarn is None:
        return plain
    if yarn["by_index"]:
        first = R * math.log(yarn["L"] / (yarn["beta"] * 2 * math.pi)) / (2 * math.log(theta))
        last = R * math.log(yarn["L"] / (yarn["alpha"] * 2 * math.pi)) / (2 * math.log(theta))
        if yarn.get("whole", 1):
            first, last = math.floor(first), math.ceil(last)
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


def yarn_temperature(yarn: Mapping[str, float] | None) -> float:
    """t, which scores are divided by: ``sqrt(1/t) = m ln s + 1``; 1 without YaRN."""
    return 1.0 if yarn is None else 1 / math.pow(yarn["m"] * math.log(yarn["s"]) + 1, 2)
