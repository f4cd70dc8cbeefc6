"""Adafactor: stacks of experts, small gradients, the cap of its rate, precision. Reference: ``naive.py``."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from moekit.registry import build
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.adafactor.naive import Memory, naive_adafactor


def rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


class Stack(nn.Module):
    def __init__(self, w_EHD: Tensor) -> None:
        super().__init__()
        self.w_EHD = nn.Parameter(w_EHD.clone())


def test_each_expert_of_a_stack_has_rows_and_columns_of_its_own() -> None:
    """Without a clip an expert's update has the direction that it has alone; sizes are of the whole stack."""
    w_EHD, g_EHD = torch.randn(2, 3, 4, 5).double().unbind()
    model = Stack(w_EHD)
    model.w_EHD.grad = g_EHD * torch.tensor([1.0, 1e-6, 100.0]).double()[:, None, None]
    build(Adafactor(lr=0.1, clip=1e9), model).step()
    for e in range(3):
        options = {"lr": 0.1, "decay": 0.8, "clip": 1e9, "weight_decay": 0.0}
        alone = naive_adafactor(w_EHD[e], g_EHD[e], Memory(), **options, eps=[1e-16, 1e-3])
        moved = (model.w_EHD[e] - w_EHD[e]).detach() / rms(w_EHD)
        torch.testing.assert_close(moved, (alone - w_EHD[e]) / rms(w_EHD[e]), rtol=1e-6, atol=1e-9)


def test_an_expert_without_gradient_stays_and_nothing_becomes_nan() -> None:
    model = Stack(torch.randn(2, 3, 4))
    before = model.w_EHD.detach().clone()
    optimizer = build(Adafactor(), model)
    for _ in range(2):
        model.w_EHD.grad = torch.randn(2, 3, 4)
        model.w_EHD.grad[1] = 0
        model.w_EHD.grad[0, 2] = 0  # and a row of an expert that has one
        optimizer.step()
    assert torch.equal(model.w_EHD[1], before[1]) and torch.equal(model.w_EHD[0, 2], before[0, 2])
    assert model.w_EHD.isfinite().all() and (model.w_EHD[0, :2] != before[0, :2]).all()


def test_small_gradients_make_as_large_updates_as_large_ones() -> None:
    """Invariance to scale: torch's default eps would make the update 37 times as large for gradients of 1e-5."""
    moved = []
    for scale in (1.0, 1e-5):
        model = Stack(torch.ones(1, 3, 4))
        model.w_EHD.grad = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)) * scale
        build(Adafactor(clip=1e9), model).step()
        moved.append(model.w_EHD.detach() - 1)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-7)


def test_the_rate_is_capped_by_one_over_the_root_of_the_step() -> None:
    """.01 held constant is 1/sqrt(t) from step 10^4 on: T5's and Switch's schedule."""
    model = nn.Linear(2, 2, bias=False).double()
    optimizer = build(Adafactor(lr=0.01, clip=1e9), model)
    start = copy.deepcopy(model.weight.detach())
    for t in (0, 39_999):
        model.weight.data.copy_(start)
        model.weight.grad = torch.ones_like(model.weight)
        if t:
            optimizer.state[model.weight]["step"].fill_(t)
        optimizer.step()
        rate = (start - model.weight.detach()) / rms(start)
        torch.testing.assert_close(rate, torch.full_like(rate, 0.01 if t == 0 else 1 / math.sqrt(40_000)))


@pytest.mark.parametrize("eps", [[1e-30, 1e-3], [0.0, 1e-3], [1e-16], [1e-16, -1.0]])
def test_epsilons_are_checked(eps: list[float]) -> None:
    with pytest.raises(ValueError, match="must be two numbers: the first >= 1e-18, the second >= 0"):
        Adafactor(eps=eps)


def test_the_smallest_epsilon_still_divides_by_more_than_zero() -> None:
    model = Stack(torch.randn(1, 3, 4))
    model.w_EHD.grad = torch.zeros(1, 3, 4)
    build(Adafactor(eps=[1e-18, 1e-3]), model).step()
    assert model.w_EHD.isfinite().all()


def test_half_precision_sums_in_fp32() -> None:
    """A sum of 2^17 squared weights of 1/8 would stop growing in bf16; the update is that of fp32, rounded once."""
    w, g = torch.full((1024, 128), 0.125), torch.randn(1024, 128).bfloat16()
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = Stack(w.to(dtype))
        model.w_EHD.grad = g.to(dtype)
        optimizer = build(Adafactor(), model)
        optimizer.step()
        moved[dtype] = model.w_EHD.detach().float()
        assert {value.dtype for key, value in optimizer.state[model.w_EHD].items() if key != "step"} == {dtype}
    torch.testing.assert_close(moved[torch.bfloat16], moved[torch.float32], rtol=2**-8, atol=0)


def test_parameters_without_a_gradient_stay() -> None:
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    model.bias.grad = torch.ones(3)
    optimizer = build(Adafactor(), model)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert torch.equal(model.weight, before) and model.weight not in optimizer.state and (model.bias != 0).any()


def test_a_step_reads_no_number_on_the_host() -> None:
    """Parameters on ``meta`` have no values to read."""
    model = nn.Sequential(nn.Linear(3, 4, device="meta"), Stack(torch.empty(2, 3, 4, device="meta")))
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer = build(Adafactor(weight_decay=0.1), model)
    for _ in range(2):
        optimizer.step()
    assert all(state["step"] == 2 for state in optimizer.state.values()) and len(optimizer.state) == 3


def test_adafactor_resumes_from_the_state_of_torchs() -> None:
    """Checkpoints of earlier commits hold it."""
    ours, torchs = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    parts = [{"params": [torchs.weight], "weight_decay": 0.1}, {"params": [torchs.bias]}]
    other = torch.optim.Adafactor(parts, lr=0.02, eps=(1e-16, 1e-3))
    one = build(Adafactor(lr=0.5, weight_decay=0.1), ours)
    for step in range(4):
        for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        if step == 2:
            ours.load_state_dict(torchs.state_dict())
            one.load_state_dict(copy.deepcopy(other.state_dict()))
        if step >= 2:
            one.step()
        other.step()
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=1e-12, atol=1e-14)
