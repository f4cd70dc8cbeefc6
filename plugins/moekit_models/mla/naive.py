"""Reference implementation of multi-head latent attention: one position and head at a time, in the paper's two forms.

``attend`` computes keys and values from the latent, as the equations say. ``attend_absorbed`` never does: it applies
W_UK to the query and W_UV to the output, so that attention runs over the latents themselves, as with a cache of
latents. Both compute the same function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Sizes and constants of the layer; YaRN's are named as in ``frequency``."""

    heads: int
    kv_rank: int
    nope: int
    rope: int
    value: int
    theta: float
    eps: float
    yarn: Mapping[str, float] | None = None


def attend(x_SD: Tensor, w: Mapping[str, Tensor], n: Sizes) -> Tensor:
    """``y_SD`` of one sequence, eqs 9 to 19. ``w``: the module's ``state_dict`` names."""
    out = []
    for s in range(x_SD.shape[0]):
        heads = []
        for h in range(n.heads):
            q_nope, q_rope = query(x_SD[s], w, n, h, s)
            w_uk, w_uv = unfold(w, n, h)
            score, value = [], []
            for t in range(s + 1):
                c = latent(x_SD[t], w, n)
                score.append((q_nope @ (w_uk @ c) + q_rope @ shared_key(x_SD[t], w, n, t)) / scale(n))
                value.append(w_uv @ c)
            share = softmax(score)
            heads.append(sum((share[t] * value[t] for t in range(s + 1)), torch.zeros_like(value[0])))
        out.append(w["out.weight"] @ torch.cat(heads))
    return torch.stack(out)


def attend_absorbed(x_SD: Tensor, w: Mapping[str, Tensor], n: Sizes) -> Tensor:
    """The same with ``q' = W_UK^T q`` scored against the latents, and ``W_UV`` applied to their average."""
    cache = [(latent(x, w, n), shared_key(x, w, n, t)) for t, x in enumerate(x_SD)]
    out = []
    for s in range(x_SD.shape[0]):
        heads = []
        for h in range(n.heads):
            q_nope, q_rope = query(x_SD[s], w, n, h, s)
            w_uk, w_uv = unfold(w, n, h)
            q_latent = w_uk.T @ q_nope
            share = softmax([(q_latent @ c + q_rope @ k) / scale(n) for c, k in cache[: s + 1]])
            mixed = sum((share[t] * cache[t][0] for t in range(s + 1)), torch.zeros_like(cache[0][0]))
            heads.append(w_uv @ mixed)
        out.append(w["out.weight"] @ torch.cat(heads))
    return torch.stack(out)


def query(x_D: Tensor, w: Mapping[str, Tensor], n: Sizes, h: int, s: int) -> tuple[Tensor, Tensor]:
    """Both parts of head ``h``'s query at position ``s``, the second one rotated."""
    c = norm(w["q_down.weight"] @ x_D, w["q_norm.weight"], n.eps) if "q_down.weight" in w else x_D
    width = n.nope + n.rope
    q = w["q_up.weight"][h * width : (h + 1) * width] @ c
    return q[: n.nope], turn(q[n.nope :], s, n.theta, n.yarn)


def latent(x_D: Tensor, w: Mapping[str, Tensor], n: Sizes) -> Tensor:
    """The normed latent from which keys and values are computed."""
    return norm(w["kv_down.weight"][: n.kv_rank] @ x_D, w["kv_norm.weight"], n.eps)


def shared_key(x_D: Tensor, w: Mapping[str, Tensor], n: Sizes, t: int) -> Tensor:
    """The rotary key at position ``t``, from the token itself, one for all heads."""
    return turn(w["kv_down.weight"][n.kv_rank :] @ x_D, t, n.theta, n.yarn)


def unfold(w: Mapping[str, Tensor], n: Sizes, h: int) -> tuple[Tensor, Tensor]:
    """``W_UK`` and ``W_UV`` of head ``h``."""
    both = w["kv_up.weight"][h * (n.nope + n.value) : (h + 1) * (n.nope + n.value)]
    return both[: n.nope], both[n.nope :]


def scale(n: Sizes) -> float:
    """What scores are divided by."""
    return math.sqrt(n.nope + n.rope) * temperature(n.yarn)


def softmax(score: list[Tensor]) -> Tensor:
    """Shares that sum to 1."""
    e = torch.stack(score).exp()
    return e / e.sum()


def norm(u: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return u / torch.sqrt((u * u).mean() + eps) * weight


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


def temperature(yarn: Mapping[str, float] | None) -> float:
    """t, which scores are divided by: ``sqrt(1/t) = m ln s + 1``; 1 without YaRN."""
    return 1.0 if yarn is None else 1 / math.pow(yarn["m"] * math.log(yarn["s"]) + 1, 2)
