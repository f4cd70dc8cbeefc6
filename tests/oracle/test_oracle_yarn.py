"""YaRN against the paper and against what released code does, in fp64; and the numbers of DeepSeek-V2 and V3."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekit_models.gqa import GQA
from moekit_models.gqa import naive as gqa_naive
from moekit_models.gqa.module import GroupedQueryAttention
from moekit_models.mla import MLA
from moekit_models.mla import naive as mla_naive
from moekit_models.mla.module import MultiHeadLatentAttention
from moekit_models.rotary import rotate, score_scale, turns
from moekit_models.yarn import Yarn

V3 = Yarn(factor=40.0)
V2 = Yarn(factor=40.0, mscale=0.0707)


def numbers(yarn: Yarn) -> dict[str, float]:
    """The oracle's names for the options."""
    return {
        "s": yarn.factor,
        "L": yarn.original,
        "alpha": yarn.beta_slow,
        "beta": yarn.beta_fast,
        "m": yarn.mscale,
        "by_index": float(yarn.ramp == "index"),
    }


def turns_of(width: int, theta: float, yarn: Yarn | None) -> Tensor:
    """Radians a position of each pair, read off position 1."""
    x = torch.zeros(2, width, dtype=torch.float64)
    x[:, : width // 2] = 1
    y = rotate(x, turns(x, width, theta, yarn))[1]
    return torch.atan2(y[width // 2 :], y[: width // 2])


@given(
    st.integers(1, 16),
    st.floats(1.5, 1e5),
    st.floats(1, 100),
    st.integers(1, 10**5),
    st.floats(0.01, 4),
    st.floats(1.1, 50),
    st.sampled_from(["index", "turns"]),
)
@settings(max_examples=50, deadline=None)
def test_angles(
    pairs: int, theta: float, s: float, L: int, slow: float, times: float, ramp: Literal["index", "turns"]
) -> None:
    yarn = Yarn(factor=s, original=L, beta_slow=slow, beta_fast=slow * times, ramp=ramp)
    found = turns_of(2 * pairs, theta, yarn)
    for naive in (gqa_naive, mla_naive):
        expected = [naive.frequency(i, 2 * pairs, theta, numbers(yarn)) for i in range(pairs)]
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-7, atol=1e-12)
    plain = turns_of(2 * pairs, theta, None)
    assert (found <= plain * (1 + 1e-12)).all() and (found >= plain / s * (1 - 1e-12)).all()


def test_a_factor_of_1_is_no_yarn() -> None:
    torch.testing.assert_close(turns_of(64, 1e4, Yarn(factor=1.0)), turns_of(64, 1e4, None), rtol=1e-14, atol=0)
    assert Yarn(factor=1.0).score_factor() == 1.0


def test_the_pairs_of_deepseek() -> None:
    """64 rotary dimensions, base 10^4: pairs to the 10th keep their angles, from the 23rd on they are a fortieth."""
    assert V3.bounds(64, 1e4) == (10, 23)
    plain, found = turns_of(64, 1e4, None), turns_of(64, 1e4, V3)
    torch.testing.assert_close(found[:11], plain[:11], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[23:], plain[23:] / 40, rtol=1e-9, atol=0)
    assert (found[11:23] < plain[11:23]).all() and (found[11:23] > plain[11:23] / 40).all()
    # by the paper's definition: 32 turns in 4096 positions is one in 128
    turns = 4096 / (2 * math.pi) * plain
    assert turns[10] > 32 > turns[11] and turns[22] > 1 > turns[23]
    by_turns = turns_of(64, 1e4, Yarn(factor=40.0, ramp="turns"))
    torch.testing.assert_close(by_turns[:11], plain[:11], rtol=1e-12, atol=0)
    torch.testing.assert_close(by_turns[23:], plain[23:] / 40, rtol=1e-9, atol=0)
    assert (by_turns[11:23] < found[11:23]).all()  # the two ramps agree at their ends alone


@pytest.mark.parametrize(("yarn", "root", "factor"), [(V3, 1.368888, 1.873854), (V2, 1.260804, 1.589627)])
def test_scores_are_multiplied_by_the_square(yarn: Yarn, root: float, factor: float) -> None:
    assert yarn.score_factor() == pytest.approx(factor, abs=1e-6)  # squares of roots that were rounded first
    assert math.sqrt(yarn.score_factor()) == pytest.approx(root, abs=5e-7)
    assert score_scale(192, yarn) == pytest.approx(factor / math.sqrt(192), abs=1e-7)
    assert gqa_naive.temperature(numbers(yarn)) == pytest.approx(1 / factor, abs=1e-6)


def spread(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.7)
    return module


@pytest.mark.parametrize("ramp", ["index", "turns"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_attention_and_its_gradients(kind: str, ramp: Literal["index", "turns"]) -> None:
    yarn = Yarn(factor=8.0, original=40, beta_fast=4.0, beta_slow=0.5, mscale=0.3, ramp=ramp)
    module: nn.Module
    if kind == "gqa":
        spec = GQA(heads=4, kv_heads=2, head_dim=8, rope_theta=100.0, yarn=yarn)
        module = GroupedQueryAttention(spec, 6)
    else:
        module = MultiHeadLatentAttention(
            MLA(heads=2, kv_rank=5, nope_dim=2, rope_dim=8, value_dim=3, rope_theta=100.0, yarn=yarn), 6
        )
    module = spread(module.double())
    w = dict(module.named_parameters())
    sizes = mla_naive.Sizes(heads=2, kv_rank=5, nope=2, rope=8, value=3, theta=100.0, eps=1e-6, yarn=numbers(yarn))
    x_SD = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    fast = module(x_SD[None])[0]

    def by_groups() -> Tensor:
        return gqa_naive.attend(x_SD, w, heads=4, kv_heads=2, theta=100.0, eps=1e-6, yarn=numbers(yarn))

    latent = (lambda: mla_naive.attend(x_SD, w, sizes), lambda: mla_naive.attend_absorbed(x_SD, w, sizes))
    for form in (by_groups,) if kind == "gqa" else latent:
        slow = form()
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-11)
        leaves, up = [x_SD, *w.values()], torch.randn_like(slow)
        for a, b in zip(
            torch.autograd.grad((fast * up).sum(), leaves, retain_graph=True),
            torch.autograd.grad((slow * up).sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_scores_still_depend_on_the_difference_of_positions_alone() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)
    yarn = Yarn(factor=4.0, original=16, beta_fast=2.0, beta_slow=0.1)
    by = turns(q.expand(20, 8), 8, 10.0, yarn)
    score = rotate(q.expand(20, 8), by) @ rotate(k.expand(20, 8), by).T
    for shift in (-7, 0, 3):
        diagonal = score.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="beta_fast=1 must be more than beta_slow=1"):
        Yarn(factor=2.0, beta_fast=1.0)
    with pytest.raises(ValueError, match=r"factor=0.5 is out of range \(>= 1\)"):
        Yarn(factor=0.5)
    for make in (
        lambda: GQA(heads=1, head_dim=2, rope_theta=1.0, yarn=V3),
        lambda: MLA(heads=1, kv_rank=2, nope_dim=2, rope_dim=2, value_dim=2, rope_theta=1.0, yarn=V3),
    ):
        with pytest.raises(ValueError, match="rope_theta=1 must be more than 1 under yarn"):
            make()
