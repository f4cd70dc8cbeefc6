"""The norm of all gradients in one process, and clipping. Of sharded models: ``test_sharding``."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from moekit.training import step
from moekit.training.step import clip, clip_values, divide, total_norm


def passes(name: str) -> Any:
    """Counts the calls of a function over many gradients."""
    return mock.patch.object(step, name, wraps=getattr(step, name))


def with_gradients(*gradients: torch.Tensor | None) -> nn.ParameterList:
    parameters = nn.ParameterList(nn.Parameter(torch.zeros(3) if g is None else torch.zeros_like(g)) for g in gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return parameters


def test_the_norm_is_that_of_all_elements_together() -> None:
    g = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((3, 4), (5,), (0, 2))]
    norm = total_norm(with_gradients(*gradients, None))
    assert norm.dtype == torch.float64 and norm.shape == ()
    torch.testing.assert_close(norm, torch.cat([x.flatten() for x in gradients]).norm(), rtol=1e-14, atol=0)


def test_half_precision_is_summed_in_fp32() -> None:
    """A sum of 4096 squares in bf16 stops growing at 256."""
    parts = (torch.full((4096,), 0.5).bfloat16(), torch.full((9,), 2.0), torch.full((4096,), 0.5).half())
    assert float(total_norm(with_gradients(*parts))) == pytest.approx((2 * 4096 / 4 + 36) ** 0.5, rel=1e-6)


def test_the_norm_of_no_gradients_is_zero() -> None:
    assert total_norm(with_gradients(None)) == 0
    assert total_norm(nn.Module()) == 0


@pytest.mark.parametrize(("most", "factor"), [(1.0, 1 / 5), (10.0, 1.0)])
def test_clipping_scales_all_gradients_alike(most: float, factor: float) -> None:
    parameters = with_gradients(torch.tensor([3.0]), torch.tensor([4.0]).bfloat16())
    with passes("foreach_mul") as calls:
        clip(parameters, float(total_norm(parameters)), most)
    assert calls.call_count == (2 if factor < 1 else 0)  # one for each dtype; none within the limit
    first, second = (p.grad for p in parameters)
    assert first is not None and second is not None and second.dtype == torch.bfloat16
    assert float(first) == pytest.approx(3 * factor, rel=1e-5) and float(second) == pytest.approx(4 * factor, rel=4e-3)


def test_gradients_are_divided_in_one_pass_and_clipped_by_value() -> None:
    parameters = with_gradients(torch.tensor([3.0, -4.0, 1.0]), None, torch.zeros(0), torch.tensor([7.0]))
    with passes("foreach_div") as calls:
        divide(parameters, torch.tensor(2.0, dtype=torch.float64))
    assert [len(gradients) for gradients, _ in (call.args for call in calls.call_args_list)] == [2]
    clip_values(parameters, 1.0)
    assert parameters[0].grad is not None and parameters[0].grad.tolist() == [1.0, -1.0, 0.5]


def test_gradients_in_half_precision_are_divided_in_fp32() -> None:
    """In bf16 the divisor would be 1000, the quotient 4."""
    gradient = torch.tensor([4000.0]).bfloat16()
    divide(with_gradients(gradient), torch.tensor(1005.0, dtype=torch.float64))
    assert torch.equal(gradient, torch.tensor([4000 / 1005]).bfloat16()) and gradient != 4
