"""Elementwise functions of ``StandardForm.activation`` and their derivatives, in fp32."""

from __future__ import annotations

import triton
import triton.language as tl

NAMES = ("silu", "gelu", "relu", "sigmoid")
"""The values of ``ACT``."""


@triton.jit
def activate(x, ACT: tl.constexpr):
    """``act(x)``."""
    if ACT == "silu":
        y = x * tl.sigmoid(x)
    elif ACT == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "relu":
        y = tl.where(x <= 0, 0.0, x)  # not x > 0: a NaN stays one
    else:
        tl.static_assert(ACT == "sigmoid", "no such activation")
        y = tl.sigmoid(x)
    return y


@triton.jit
def derivative(x, ACT: tl.constexpr):
    """``act'(x)``; 0 at the corner of relu."""
    if ACT == "silu":
        s = tl.sigmoid(x)
        y = s * (1.0 + x * (1.0 - s))
    elif ACT == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    elif ACT == "relu":
        y = tl.where(x > 0, 1.0, 0.0)
    else:
        tl.static_assert(ACT == "sigmoid", "no such activation")
        s = tl.sigmoid(x)
        y = s * (1.0 - s)
    return y
