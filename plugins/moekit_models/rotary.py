"""Rotary positions, plain and stretched over a longer context.

- Angles are computed at least in fp32, whatever autocast or the dtype of the weights says.
- Pairs are (i, i + R/2), the halves of a head: no strided access, and the layout of Llama's checkpoints. The paper
  pairs neighbours (2i, 2i + 1): the same function after a fixed permutation of each head's weights.

Source: Su et al. 2021, RoFormer (section 3.2.2, eq. 15); Peng et al. 2023, YaRN (section 3.2, eqs 17 to 21).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from moekit.compat import is_observed
from moekit_models.stretch import LongRope, Stretch
from moekit_models.yarn import Yarn

Longer = Yarn | Stretch | LongRope
"""How the angles are changed for a longer context."""

MOST_KEPT = 1 << 20
"""Cosines that a table may have to be kept for later passes."""


class Turns(NamedTuple):
    """Rotations by position: made once for all vectors that they rotate.

    Attributes:
        cos: ``[S, R]``, or ``[S, heads, R]``, at least fp32: the cosines of R/2 pairs, twice.
        sin: of the same shape: their sines, negative for the first half.
    """

    cos: Tensor
    sin: Tensor

    def between(self, start: int, end: int) -> Turns:
        """The turns of these positions alone."""
        return self if (start, end) == (0, len(self.cos)) else Turns(*(t[start:end] for t in self))


def turns(x: Tensor, width: int, theta: float, longer: Longer | None = None, start: int = 0, heads: int = 0) -> Turns:
    """Rotates pair i of position s by ``s · theta^(-2i/R)``, which ``longer`` reduces, for slow pairs more.

    Args:
        x: ``[..., S, D]``, tokens; only their number, dtype and device are used.
        width: R, of the vectors to rotate, even.
        theta: base of the angles.
        longer: None to use the angles as they are.
        start: index of the first position, if others precede it.
        heads: if given, the turns are for ``[..., S, heads, R]``. They are repeated in memory: products of long
            contiguous rows are three times as fast.
    """
    end, wide = start + x.shape[-2], torch.promote_types(x.dtype, torch.float32)
    room = 1 << max(end - 1, 63).bit_length()  # so that decoding makes few tables
    fixed = longer is None or isinstance(longer, Yarn) or (isinstance(longer, Stretch) and not longer.reads_length)
    small = room * width * max(heads, 1) <= MOST_KEPT
    if fixed and small and not torch.compiler.is_compiling() and not is_observed():
        return _kept_between(start, end, width, theta, longer, room, wide, x.device, heads)
    return _turns(width, theta, longer, end, wide, x.device, heads).between(start, end)


def _turns(
    R: int, theta: float, longer: Longer | None, end: int, dtype: torch.dtype, device: torch.device, heads: int
) -> Turns:
    """The turns of the positions before ``end``."""
    if isinstance(longer, Stretch):
        theta = longer.base(theta, R, end)
    turn, scale = theta ** (-torch.arange(0, R, 2, device=device, dtype=dtype) / R), 1.0
    if isinstance(longer, Yarn):
        turn = _stretched(turn, theta, longer)
    elif isinstance(longer, LongRope):
        divisors, scale = longer.of(end)
        turn = turn / torch.tensor(divisors, device=device, dtype=dtype)
    elif longer is not None and longer.rule == "linear":
        turn = turn / longer.factor
    angle = torch.arange(end, device=device, dtype=dtype)[:, None] * turn
    cos, sin = angle.cos() * scale, angle.sin() * scale
    both = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return Turns(*(t[:, None].repeat(1, heads, 1) if heads else t for t in both))


@lru_cache(maxsize=16)
def _kept_between(
    start: int, end: int, R: int, theta: float, longer: Longer | None, room: int, dtype: torch.dtype,
    device: torch.device, heads: int,
) -> Turns:  # fmt: skip
    """Views of the kept turns, which all layers share in a step of decoding."""
    with torch.inference_mode(False):
        return _kept_turns(R, theta, longer, room, dtype, device, heads).between(start, end)


@lru_cache(maxsize=16)
def _kept_turns(
    R: int, theta: float, longer: Longer | None, end: int, dtype: torch.dtype, device: torch.device, heads: int
) -> Turns:
    """The same, kept for later passes and other layers; usable with and without gradients."""
    with torch.inference_mode(False):
        return _turns(R, theta, longer, end, dtype, device, heads)


def rotate(x: Tensor, by: Turns) -> Tensor:
    """Rotates every pair: ``a cos - b sin`` and ``b cos + a sin``.

    Args:
        x: ``[..., S, R]``, R even; ``[..., S, heads, R]`` with turns of as many heads.
        by: the rotations.

    Returns:
        The same shape and dtype. Scores of two rotated vectors depend on the difference of their positions alone.
    """
    wide = x.to(torch.promote_types(x.dtype, by.cos.dtype))
    differentiated = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    run = Rotated.apply if differentiated and wide.dtype == torch.float32 else Rotated.forward
    return cast(Tensor, run(wide, by.cos, by.sin)).to(x.dtype)


class Rotated(torch.autograd.Function):
    """A rotation, whose backward pass is the rotation back; saves no vector. Differentiable any number of times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x``, rotated."""
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Saves the turns, which many vectors share."""
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, rotated back."""
        cos, sin = ctx.saved_tensors
        return Rotated.apply(g, cos, -sin), None, None  # type: ignore[no-untyped-call]


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
