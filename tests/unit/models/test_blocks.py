"""RMSNorm and rotary positions."""

from __future__ import annotations

import math

import torch

from moekit_models.blocks import RMSNorm
from moekit_models.rotary import rotate, turns


def test_the_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(2, eps=0.0)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / math.sqrt(12.5))


def test_the_norm_takes_bf16_with_fp32_weights_under_autocast() -> None:
    norm = RMSNorm(64, eps=1e-6)
    x = torch.randn(3, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16(), rtol=0, atol=0)


def test_bf16_vectors_are_rotated_in_fp32() -> None:
    x = torch.randn(2000, 8).bfloat16()
    by = turns(x, 8, 1e4)
    assert by.cos.dtype == torch.float32
    torch.testing.assert_close(rotate(x, by), rotate(x.float(), by).bfloat16(), rtol=0, atol=0)
