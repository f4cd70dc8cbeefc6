"""Adafactor against the paper's algorithms in plain loops, and against torch's implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit.registry import build
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.adafactor.naive import Memory, naive_adafactor

SCALES = (1e-20, 1e-9, 1.0, 1e-5, 30.0, 0.0)
"""Scales of successive gradients. The first are so small that the first epsilon bounds V, or the mean of V."""


class Some(nn.Module):
    """Parameters of given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.all = nn.ParameterList(
            torch.randn(shape, dtype=torch.float64) * 10.0**-i for i, shape in enumerate(shapes)
        )


def decayed(p: Tensor, weight_decay: float) -> float:
    return weight_decay if p.ndim > 1 else 0.0


@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=4),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.sampled_from([[1e-16, 1e-3], [1e-6, 0.3]]),
    st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_steps_equal_the_papers_algorithms(
    shape: list[int], lr: float, clip: float, decay: float, eps: list[float], seed: int
) -> None:
    """Scalars, vectors, matrices, stacks of them, and stacks of stacks."""
    torch.manual_seed(seed)
    model = Some([tuple(shape)])
    spec = Adafactor(lr=lr, clip=clip, decay=decay, weight_decay=0.2, eps=eps)
    optimizer = build(spec, model)
    (p,) = model.parameters()
    expected, kept = p.detach().clone(), Memory()
    for scale in SCALES:
        p.grad = torch.randn_like(p) * scale
        expected = naive_adafactor(
            expected, p.grad, kept, lr=lr, decay=decay, clip=clip, weight_decay=decayed(p, 0.2), eps=eps
        )
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("clip", [1.0, 1.7])
def test_steps_and_state_equal_torchs(clip: float) -> None:
    """Up to rounding, including the names of state; torch accepts no clip below 1."""
    shapes = [(), (7,), (1,), (5, 3), (1, 4), (4, 5, 6), (2, 3, 4, 5)]
    ours, torchs = Some(shapes), Some(shapes)
    torchs.load_state_dict(ours.state_dict())
    one = build(Adafactor(lr=0.05, clip=clip, weight_decay=0.1, eps=[1e-7, 1e-3]), ours)
    parts = [{"params": [p], "weight_decay": decayed(p, 0.1)} for p in torchs.parameters()]
    other = torch.optim.Adafactor(parts, lr=0.05, d=clip, eps=(1e-7, 1e-3))
    for t, scale in enumerate(SCALES):
        for group in (*one.param_groups, *other.param_groups):
            group["lr"] = 0.05 / (t + 1)  # a schedule
        for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
            p.grad = torch.randn_like(p) * scale
            q.grad = p.grad.clone()
        one.step()
        other.step()
        for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)
            assert one.state[p].keys() == other.state[q].keys()
            for key, value in other.state[q].items():
                torch.testing.assert_close(one.state[p][key], value, rtol=1e-12, atol=0)
