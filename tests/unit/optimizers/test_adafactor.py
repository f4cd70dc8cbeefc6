"""Adafactor against the paper's algorithms written out in loops, and where torch would depart from them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit.registry import build
from moekit_optimizers.adafactor import Adafactor


def rms(x: Tensor) -> float:
    return math.sqrt(sum(v * v for v in x.flatten().tolist()) / x.numel())


class Paper:
    """Algorithms 4 (matrices) and 5 (vectors) of Shazeer and Stern, one element at a time; no momentum."""

    def __init__(self, x: Tensor, spec: Adafactor) -> None:
        self.x, self.spec, self.t = x.clone(), spec, 0
        self.row = [0.0] * x.shape[0]
        self.column = [0.0] * (x.shape[1] if x.ndim == 2 else 0)

    def step(self, g: Tensor, lr: float, weight_decay: float) -> None:
        self.t += 1
        spec, beta = self.spec, 1 - self.t**-self.spec.decay
        rho = min(lr, 1 / math.sqrt(self.t))
        alpha = max(spec.eps[1], rms(self.x)) * rho
        u = torch.empty_like(g)
        if g.ndim == 2:
            n, m = g.shape
            for i in range(n):
                self.row[i] = beta * self.row[i] + (1 - beta) * sum(g[i, j].item() ** 2 for j in range(m))
            for j in range(m):
                self.column[j] = beta * self.column[j] + (1 - beta) * sum(g[i, j].item() ** 2 for i in range(n))
            for i in range(n):
                for j in range(m):
                    u[i, j] = g[i, j] / math.sqrt(self.row[i] * self.column[j] / sum(self.row))
        else:
            for i in range(len(g)):
                self.row[i] = beta * self.row[i] + (1 - beta) * g[i].item() ** 2
                u[i] = g[i] / math.sqrt(self.row[i])
        u = u / max(1.0, rms(u) / spec.clip)
        self.x = self.x * (1 - lr * weight_decay) - alpha * u


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None)
def test_steps_are_the_papers(n: int, m: int, lr: float, clip: float, decay: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(m, n).double()
    spec = Adafactor(lr=lr, clip=clip, decay=decay, weight_decay=0.2)
    optimizer = build(spec, model)
    papers = {name: Paper(p.detach(), spec) for name, p in model.named_parameters()}
    for scale in (1.0, 1e-5, 30.0):  # gradients of very different sizes, one after the other
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p) * scale
            papers[name].step(p.grad, lr, 0.2 if name == "weight" else 0.0)
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), papers[name].x, rtol=1e-9, atol=1e-12)


class Stack(nn.Module):
    def __init__(self, w_EHD: Tensor) -> None:
        super().__init__()
        self.w_EHD = nn.Parameter(w_EHD.clone())


def test_each_expert_of_a_stack_has_rows_and_columns_of_its_own() -> None:
    """Without a clip the direction of an expert's update is what it is alone; sizes are of the whole stack."""
    w_EHD, g_EHD = torch.randn(2, 3, 4, 5).double().unbind()
    model = Stack(w_EHD)
    model.w_EHD.grad = g_EHD * torch.tensor([1.0, 1e-6, 100.0]).double()[:, None, None]
    build(Adafactor(lr=0.1, clip=1e9), model).step()
    for e in range(3):
        alone = Paper(w_EHD[e], Adafactor(clip=1e9))
        alone.step(g_EHD[e], lr=0.1, weight_decay=0.0)
        moved = (model.w_EHD[e] - w_EHD[e]).detach() / max(1e-3, rms(w_EHD))
        torch.testing.assert_close(moved, (alone.x - w_EHD[e]) / max(1e-3, rms(w_EHD[e])), rtol=1e-6, atol=1e-9)


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


def test_small_gradients_move_as_far_as_large_ones() -> None:
    """Invariance to scale: with torch's default eps an expert with gradients of 1e-5 moves 37 times as far."""
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


def test_only_matrices_decay_and_tied_or_frozen_parameters_are_not_held_twice() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    decayed, plain = build(Adafactor(weight_decay=0.1), model).param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)] and decayed["weight_decay"] == 0.1
    assert [id(p) for p in plain["params"]] == [id(p) for p in (model[0].bias, *model[1].parameters())]
    assert plain["weight_decay"] == 0.0


@pytest.mark.parametrize("eps", [[1e-30, 1e-3], [0.0, 1e-3], [1e-16], [1e-16, -1.0]])
def test_epsilons_are_checked(eps: list[float]) -> None:
    with pytest.raises(ValueError, match="must be two numbers: the first >= 1e-18, the second >= 0"):
        Adafactor(eps=eps)


def test_the_smallest_epsilon_still_divides_by_more_than_zero() -> None:
    model = Stack(torch.randn(1, 3, 4))
    model.w_EHD.grad = torch.zeros(1, 3, 4)
    build(Adafactor(eps=[1e-18, 1e-3]), model).step()
    assert model.w_EHD.isfinite().all()
