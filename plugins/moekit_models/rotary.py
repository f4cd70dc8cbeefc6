"""Rotary positions, plain and stretched over a longer context.

- Angles are computed at least in fp32, whatever autocast or the dtype of the weights says.
- Pairs are (i, i + R/2), the halves of a head: no strided access, and the layout of Llama's checkpoints. The paper
  pairs neighbours (2i, 2i + 1): the same function after a fixed permutation of each head's weights.

Source: Su et al. 2021, RoFormer (section 3.2.2, eq. 15); Peng et al. 2023, YaRN (section 3.2, eqs 17 to 21).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from moekit_models.stretch import LongRope, Stretch
from moekit_models.yarn import Yarn

Longer = Yarn | Stretch | LongRope
"""How the angles are changed for a longer context."""


class Turns(NamedTuple):
    """Rotations by position: made once in a forward pass for all vectors that they rotate.

    Attributes:
        cos: ``[S, R]``, at least fp32: the cosines of R/2 pairs, twice.
        sin: ``[S, R]``: their sines, negative for the first half.
    """

    cos: Tensor
    sin: Tensor

    def of_heads(self, heads: int) -> Turns:
        """For ``[..., S, heads, R]``. Repeated in memory: products of long contiguous rows are three times as fast."""
        return Turns(*(t[:, None].repeat(1, heads, 1) for t in self))


def turns(x: Tensor, width: int, theta: float, longer: Longer | None = None, start: int = 0) -> Turns:
    """Rotates pair i of position s by ``s · theta^(-2i/R)``, which ``longer`` reduces, for slow pairs more.

    Args:
        x: ``[..., S, D]``, tokens; only their number, dtype and device are used.
        width: R, of the vectors to rotate, even.
        theta: base of the angles.
        longer: None to use the angles as they are.
        start: index of the first position, if others precede it.
    """
    S, R = x.shape[-2], width
    wide = torch.promote_types(x.dtype, torch.float32)
    if isinstance(longer, Stretch):
        theta = longer.base(theta, R, start + S)
    turn, scale = theta ** (-torch.arange(0, R, 2, device=x.device, dtype=wide) / R), 1.0
    if isinstance(longer, Yarn):
        turn = _stretched(turn, theta, longer)
    elif isinstance(longer, LongRope):
        divisors, scale = longer.of(start + S)
        turn = turn / torch.tensor(divisors, device=x.device, dtype=wide)
    elif longer is not None and longer.rule == "linear":
        turn = turn / longer.factor
    angle = torch.arange(start, start + S, device=x.device, dtype=wide)[:, None] * turn
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return Turns(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(x: Tensor, by: Turns) -> Tensor:
    """Rotates every pair: ``a cos - b sin`` and ``b cos + a sin``.

    Args:
        x: ``[..., S, R]``, R even; ``[..., S, heads, R]`` with ``by.of_heads(heads)``.
        by: the rotations.

    Returns:
        The same shape and dtype. Scores of two rotated vectors depend on the difference of their positions alone.
    """
    wide = x.to(torch.promote_types(x.dtype, by.cos.dtype))
    return torch.addcmul(wide * by.cos, wide.roll(x.shape[-1] // 2, -1), by.sin).to(x.dtype)


def score_scale(width: int, yarn: Yarn | None) -> float | None:
    """The factor of scores of queries and keys of ``width``; None for the usual ``1/sqrt(width)``."""
    return None if yarn is None else width**-0.5 * yarn.score_factor()


def _stretched(turn: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """Angles per position, one for each of R/2 pairs: ``keep · turn + (1 - keep) · turn / s``."""
    if yarn.ramp == "turns":
        turns = yarn.original / (2 * math.pi) * turn
        between = yarn.beta_fast - yarn.beta_slow
        keep = (turns - yarn.beta_slow) / between if between else (turns > yarn.beta_slow).to(turn.dtype)
    else:
        low, high = yarn.bounds(2 * len(turn), theta)
        keep = (high - torch.arange(len(turn), device=turn.device, dtype=turn.dtype)) / (high - low)
    keep = keep.clamp(0, 1)
    return keep * turn + (1 - keep) * turn / yarn.factor
