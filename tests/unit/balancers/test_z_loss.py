"""The router z-loss: worked numbers of ST-MoE, its gradient, shifts, precision, padding."""

from __future__ import annotations

import math

import pytest
import torch
from routings import loss_of, token_choice
from torch import Tensor

from moekit_balancers.z_loss import ZLoss


def z_loss(logits_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    first_TK = torch.zeros(len(logits_TE), 1, dtype=torch.int64)
    assert ZLoss().weight == 1e-3
    return loss_of(ZLoss(), token_choice(logits_TE.softmax(-1), first_TK, valid_T, logits_TE=logits_TE))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0] * 2, 0.480453), ([0.0] * 64, 17.296308), ([1.0, 2.0, 3.0], 11.611778), ([0.0], 0.0)],
)
def test_the_loss_of_worked_examples(logits: list[float], expected: float) -> None:
    logits_TE = torch.tensor([logits, logits], dtype=torch.float64)
    assert z_loss(logits_TE).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_zero_where_logsumexp_is_and_grows_with_shifts() -> None:
    logits_TE = torch.randn(5, 4, dtype=torch.float64)
    normalised_TE = logits_TE.log_softmax(-1)
    assert z_loss(normalised_TE).item() == pytest.approx(0, abs=1e-24)
    assert z_loss(normalised_TE + 3).item() == pytest.approx(9, rel=1e-12)


def test_padding_counts_neither_in_the_sum_nor_in_its_length() -> None:
    logits_TE = torch.randn(3, 4, dtype=torch.float64)
    padded_TE = torch.cat([logits_TE, torch.full((5, 4), float("nan"), dtype=torch.float64)]).requires_grad_()
    value = z_loss(padded_TE, torch.arange(8) < 3)
    assert value.item() == pytest.approx(z_loss(logits_TE).item(), rel=1e-12)
    (grad_TE,) = torch.autograd.grad(value, padded_TE)
    assert grad_TE.isfinite().all() and not grad_TE[3:].any()


def test_micro_batches_equal_the_batch() -> None:
    logits_TE = torch.randn(12, 4, dtype=torch.float64)
    parts = [len(part) * z_loss(part).item() for part in logits_TE.split([2, 7, 3])]
    assert sum(parts) / 12 == pytest.approx(z_loss(logits_TE).item(), rel=1e-12)


def test_the_loss_is_fp32_for_bf16_logits_under_autocast() -> None:
    """A logsumexp of 11 logits of 128 is 128 + ln 11 = 130.398; bf16 has only 130 and 131 there."""
    logits_TE = torch.full((1, 11), 128.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = z_loss(logits_TE)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx((128 + math.log(11)) ** 2, rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits_TE = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    value = z_loss(logits_TE)
    (grad_TE,) = torch.autograd.grad(value, logits_TE)
    assert value.isfinite() and grad_TE.isfinite().all()
