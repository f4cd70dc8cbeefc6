"""RMSNorm: its formula, and its few passes on a CPU against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moekit_models.norms import FewPasses, RMSNorm


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


def normed(x: Tensor, weight_D: Tensor) -> Tensor:
    y: Tensor = FewPasses.apply(x, weight_D, 1e-3)  # type: ignore[no-untyped-call]
    return y


def test_few_passes_have_the_derivatives_of_the_norm_to_the_second_order() -> None:
    x, weight_D = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    inputs = [x.requires_grad_(), weight_D.requires_grad_()]
    torch.testing.assert_close(normed(*inputs), F.rms_norm(x, (4,), weight_D, 1e-3))
    assert torch.autograd.gradcheck(normed, inputs)
    assert torch.autograd.gradgradcheck(normed, inputs)
    alone: tuple[Tensor, ...]
    for alone in ((x, weight_D.detach()), (x.detach(), weight_D)):  # a frozen weight; the first norm of a model
        assert torch.autograd.gradcheck(normed, alone)


@pytest.mark.parametrize("shape", [(7, 96), (2, 5, 1, 96)])
def test_fp32_on_a_cpu_agrees_with_torchs_norm(shape: tuple[int, ...]) -> None:
    norm, x, g = RMSNorm(96, eps=1e-6), torch.randn(shape, requires_grad=True), torch.randn(shape)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    y, expected = norm(x), F.rms_norm(x, (96,), norm.weight, 1e-6)
    assert y.grad_fn is not None and "FewPasses" in type(y.grad_fn).__name__
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(out, [x, norm.weight], g) for out in (y, expected))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), y)


def test_a_norm_may_be_differentiated_by_torch_func() -> None:
    norm, x = RMSNorm(8, eps=1e-6), torch.randn(3, 8)
    each = torch.func.vmap(torch.func.grad(lambda row: norm(row).square().sum()))(x)
    whole = torch.func.grad(lambda rows: norm(rows).square().sum())(x)
    torch.testing.assert_close(each, whole)
