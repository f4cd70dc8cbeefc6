"""Properties of the noisy gate of Shazeer et al. 2017. It equals its equations in tests/oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit.contracts import Init, LayerDims
from moekit.router_math import first_top_k
from moekit_routers.noise import chance_in_top_k, noise_std
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.noisy_topk import naive as noisy_naive
from moekit_routers.noisy_topk.module import NoisyTopKRouter

NAN, INF = float("nan"), float("inf")


def noisy(E: int = 8, D: int = 6, **options: Any) -> NoisyTopKRouter:
    return NoisyTopKRouter(NoisyTopK(**({"top_k": 2} | options)), LayerDims(dim=D, num_experts=E))


def random_router(E: int = 8, D: int = 6, **options: Any) -> NoisyTopKRouter:
    """A router with random weights."""
    router = noisy(E, D, zero_init=False, **options)
    router.init_weights(Init(std=0.5))
    return router


def smooth_load(router: NoisyTopKRouter, x_TD: Tensor, **given: Tensor) -> Tensor:
    load_E = router(x_TD, **given).smooth_load_E
    assert load_E is not None
    return load_E


# --- the smooth load --------------------------------------------------------------------------------------------------


def test_the_probabilities_of_one_token_are_the_worked_example() -> None:
    z = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    sampled = torch.tensor([0.5, 0.8, -0.2], dtype=torch.float64)
    std = noise_std(torch.zeros(3, dtype=torch.float64), 0.0)
    assert std.tolist() == pytest.approx([math.log(2)] * 3)
    expected = [0.613533, 0.235348, 0.124218]
    found = chance_in_top_k(z[None], sampled[None], std[None], first_top_k(sampled[None], 2), 1)
    assert found[0].tolist() == pytest.approx(expected, abs=5e-7)
    by_loop = [noisy_naive.chance(e, list(z), list(sampled), list(std), 1).item() for e in range(3)]
    assert by_loop == pytest.approx(expected, abs=5e-7)


def test_the_standard_deviation_is_an_exact_softplus() -> None:
    raw = torch.tensor([-15.0, 0.0, 25.0, 700.0], dtype=torch.float64)
    expected = [math.log1p(math.exp(-15)), math.log(2), 25 + math.log1p(math.exp(-25)), 700.0]
    assert noise_std(raw, 0.0).tolist() == pytest.approx(expected, rel=1e-14)
    assert noise_std(torch.tensor([1e4, -1e4]), 0.01).tolist() == pytest.approx([1e4 + 0.01, 0.01])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vanishing_noise_leaves_gradients_finite(dtype: torch.dtype) -> None:
    router = noisy(noise_epsilon=0.0).to(dtype)
    with torch.no_grad():
        router.weight_ED.copy_(torch.randn(8, 6))
        router.noise_weight_ED.fill_(-1e4)  # its softplus is 0
    routing = router(torch.ones(5, 6, dtype=dtype))
    assert routing.smooth_load_E is not None
    (routing.smooth_load_E.square().sum() + routing.gate_TK.square().sum()).backward()
    assert routing.smooth_load_E.sort().values.tolist() == [0.0] * 6 + [5.0] * 2
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())


# --- choice and gates -------------------------------------------------------------------------------------------------


def test_noise_is_new_for_every_token_and_every_call() -> None:
    router, x_TD = noisy(), torch.ones(200, 6)
    once, again = router(x_TD), router(x_TD)
    assert len({tuple(row) for row in once.expert_TK.tolist()}) > 30  # of 56 ordered pairs
    assert not torch.equal(once.expert_TK, again.expert_TK)


def test_ties_of_zero_weights_go_to_the_lowest_in_evaluation() -> None:
    assert noisy().eval()(torch.randn(3, 6)).expert_TK.tolist() == [[0, 1]] * 3


def test_noise_is_fp32_in_a_bf16_model_under_autocast() -> None:
    router = random_router().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(torch.randn(500, 6, dtype=torch.bfloat16))
    assert routing.smooth_load_E is not None
    assert {routing.gate_TK.dtype, routing.smooth_load_E.dtype, routing.logits_TE.dtype} == {torch.float32}
    exact = routing.gate_TK == routing.gate_TK.bfloat16().float()
    assert exact.float().mean() < 0.1  # gates that had been bf16 would all be


# --- selection bias ---------------------------------------------------------------------------------------------------


def test_a_selection_bias_chooses_and_enters_no_gate() -> None:
    router, x_TD = random_router(), torch.randn(40, 6)
    bias_E = torch.tensor([0.0] * 7 + [100.0], requires_grad=True)
    torch.manual_seed(0)
    routing = router(x_TD, selection_bias_E=bias_E)
    assert routing.load_E()[7] == 40
    assert (routing.gate_TK[:, 0] < 1).any()  # the bias puts expert 7 first and does not change its gate
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E[7].item() == pytest.approx(40)
    (gradient,) = torch.autograd.grad(
        routing.smooth_load_E.square().sum() + routing.gate_TK.square().sum(), bias_E, allow_unused=True
    )
    assert gradient is None


def test_a_constant_added_to_the_bias_changes_no_load() -> None:
    router, x_TD = random_router().double(), torch.randn(40, 6, dtype=torch.float64)
    bias_E = torch.randn(8)
    loads = []
    for constant in (0.0, 5.0):
        torch.manual_seed(0)
        loads.append(smooth_load(router, x_TD, selection_bias_E=bias_E + constant))
    torch.testing.assert_close(loads[0], loads[1], rtol=1e-6, atol=1e-6)


def test_a_banned_expert_expects_no_load_and_keeps_gradients_finite() -> None:
    router, bias_E = random_router(), torch.tensor([0.0, -INF] + [0.0] * 6)
    routing = router(torch.randn(40, 6), selection_bias_E=bias_E)
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E[1] == 0
    assert routing.load_E()[1] == 0
    (routing.smooth_load_E.square().sum() + routing.gate_TK.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())
    only_one = torch.full((8,), -INF)
    only_one[5] = 0
    routing = router(torch.randn(4, 6), selection_bias_E=only_one)
    assert routing.expert_TK[:, 0].tolist() == [5] * 4
    assert all(len(set(row)) == 2 for row in routing.expert_TK.tolist())


# --- weights ----------------------------------------------------------------------------------------------------------


def test_both_matrices_are_zero_unless_zero_init_is_off() -> None:
    router = noisy(E=256, D=512, top_k=4)
    assert sum(p.numel() for p in router.parameters()) == 2 * 512 * 256
    assert not any(p.any() for p in router.parameters())
    router.init_weights(Init(std=0.02))
    assert not any(p.any() for p in router.parameters())
    other = noisy(E=256, D=512, top_k=4, zero_init=False)
    assert all(p.std() > 0.02 for p in other.parameters())
    other.init_weights(Init(std=0.006))
    assert all(p.std().item() == pytest.approx(0.006, rel=0.02) for p in other.parameters())
