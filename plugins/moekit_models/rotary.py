"""Rotary positions, plain and stretched by YaRN.

- Angles are computed at least in fp32, whatever autocast or the dtype of the weights says.
- Pairs are (i, i + R/2), the halves of a head: no strided access, and the layout of Llama's checkpoints. The paper
  pairs neighbours (2i, 2i + 1): the same function after a fixed permutation of each head's weights.

Source: Su et al. 2021, RoFormer (section 3.2.2, eq. 15); Peng et al. 2023, YaRN (section 3.2, eqs 17 to 21).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moekit_models.yarn import Yarn


def rotate(x: Tensor, theta: float, yarn: Yarn | None = None, start: int = 0) -> Tensor:
    """Turns pair i of position s by the angle ``s · theta^(-2i/R)``, which ``yarn`` makes smaller for slow pairs.

    Args:
        x: ``[..., S, R]``, positions in the second last dimension, R even.
        theta: base of the angles.
        yarn: how they are stretched; None: not at all.
        start: the place of the first position, where others stand before it.

    Returns:
        The same shape and dtype. Scores of two rotated vectors depend on the difference of their positions alone.
    """
    S, R = x.shape[-2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    turn = theta ** (-torch.arange(0, R, 2, device=x.device, dtype=wide) / R)
    if yarn is not None:
        turn = _stretched(turn, theta, yarn)
    angle = torch.arange(start, start + S, device=x.device, dtype=wide)[:, None] * turn
    cos, sin = angle.cos(), angle.sin()
    a, b = x.to(wide).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def score_scale(width: int, yarn: Yarn | None) -> float | None:
    """What scores of queries and keys of ``width`` are multiplied by; None for the usual ``1/sqrt(width)``."""
    return None if yarn is None else width**-0.5 * yarn.score_factor()


def _stretched(turn: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """Angles a position, one for each of R/2 pairs: ``keep · turn + (1 - keep) · turn / s``."""
    if yarn.ramp == "turns":
        turns = yarn.original / (2 * math.pi) * turn
        keep = (turns - yarn.beta_slow) / (yarn.beta_fast - yarn.beta_slow)
    else:
        low, high = yarn.bounds(2 * len(turn), theta)
        keep = (high - torch.arange(len(turn), device=turn.device, dtype=turn.dtype)) / (high - low)
    keep = keep.clamp(0, 1)
    return keep * turn + (1 - keep) * turn / yarn.factor
