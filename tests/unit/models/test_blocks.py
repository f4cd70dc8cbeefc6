"""RMSNorm and rotary positions."""

from __future__ import annotations

import math

import pytest
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


def test_a_pair_is_rotated_by_its_angle() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(3, 4)  # pairs (0, 2) and (1, 3)
    y = rotate(x, turns(x, 4, theta=100.0))
    for s in range(3):
        expected = [math.cos(s), math.cos(s / 10), math.sin(s), math.sin(s / 10)]
        assert y[s].tolist() == pytest.approx(expected, abs=1e-15)


def test_scores_depend_on_the_difference_of_positions_alone() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)
    by = turns(q.expand(20, 8), 8, 10.0)
    score = rotate(q.expand(20, 8), by) @ rotate(k.expand(20, 8), by).T
    for shift in (-7, 0, 3):
        diagonal = score.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)


def test_bf16_vectors_are_rotated_in_fp32() -> None:
    x = torch.randn(2000, 8).bfloat16()
    by = turns(x, 8, 1e4)
    assert by.cos.dtype == torch.float32
    torch.testing.assert_close(rotate(x, by), rotate(x.float(), by).bfloat16(), rtol=0, atol=0)


def test_all_heads_are_rotated_alike() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    by = turns(x.flatten(-2), 8, 10.0, start=7)
    torch.testing.assert_close(rotate(x, by.of_heads(3)), rotate(x.transpose(1, 2), by).transpose(1, 2))
