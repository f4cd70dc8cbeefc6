"""What Shazeer et al. 2017 say of the noisy gate, with their numbers. The loops it must equal are in tests/oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit.contracts import Init, LayerDims
from moekit.errors import MoekitError
from moekit.router_math import first_top_k
from moekit.spec.kinds import DispatcherSpec, ExpertSpec, MoE
from moekit_routers.noise import chance_in_top_k, noise_std
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.noisy_topk import naive as noisy_naive
from moekit_routers.noisy_topk.module import NoisyTopKRouter

NAN, INF = float("nan"), float("inf")


def noisy(E: int = 8, D: int = 6, **options: Any) -> NoisyTopKRouter:
    return NoisyTopKRouter(NoisyTopK(**({"top_k": 2} | options)), LayerDims(dim=D, num_experts=E))


def drawn(E: int = 8, D: int = 6, **options: Any) -> NoisyTopKRouter:
    """A router with weights that are not 0."""
    router = noisy(E, D, zero_init=False, **options)
    router.init_weights(Init(std=0.5))
    return router


def smooth_load(router: NoisyTopKRouter, x_TD: Tensor, **given: Tensor) -> Tensor:
    load_E = router(x_TD, **given).smooth_load_E
    assert load_E is not None
    return load_E


# --- the smooth load --------------------------------------------------------------------------------------------------


def test_the_chances_of_one_token() -> None:
    z = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    sampled = torch.tensor([0.5, 0.8, -0.2], dtype=torch.float64)
    std = noise_std(torch.zeros(3, dtype=torch.float64), 0.0)
    assert std.tolist() == pytest.approx([math.log(2)] * 3)
    expected = [0.613533, 0.235348, 0.124218]
    found = chance_in_top_k(z[None], sampled[None], std[None], first_top_k(sampled[None], 2), 1)
    assert found[0].tolist() == pytest.approx(expected, abs=5e-7)
    by_loop = [noisy_naive.chance(e, list(z), list(sampled), list(std), 1).item() for e in range(3)]
    assert by_loop == pytest.approx(expected, abs=5e-7)


def test_the_noise_is_a_softplus_to_the_last_digit() -> None:
    raw = torch.tensor([-15.0, 0.0, 25.0, 700.0], dtype=torch.float64)
    expected = [math.log1p(math.exp(-15)), math.log(2), 25 + math.log1p(math.exp(-25)), 700.0]
    assert noise_std(raw, 0.0).tolist() == pytest.approx(expected, rel=1e-14)
    assert noise_std(torch.tensor([1e4, -1e4]), 0.01).tolist() == pytest.approx([1e4 + 0.01, 0.01])


def test_with_every_expert_chosen_noise_chooses_nothing_and_the_load_is_a_count() -> None:
    router, valid_T = drawn(E=3, top_k=3), torch.tensor([True, True, False, True])
    routing = router(torch.randn(4, 6), valid_T=valid_T)
    assert routing.expert_TK.sort(1).values.tolist() == [[0, 1, 2]] * 4
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == [3.0, 3.0, 3.0]
    assert not routing.smooth_load_E.requires_grad
    assert routing.load_E().tolist() == [3, 3, 3]


def test_from_zero_weights_every_expert_expects_the_same_load() -> None:
    router, x_TD = noisy(), torch.randn(4000, 6)
    torch.manual_seed(0)
    first_E = smooth_load(router, x_TD)
    assert first_E.tolist() == pytest.approx([4000 * 2 / 8] * 8, rel=0.05)
    torch.manual_seed(0)
    assert torch.equal(smooth_load(router, 3 * x_TD + 1), first_E)  # the noise alone decides


def test_the_load_trains_both_matrices_from_where_they_start() -> None:
    router = noisy()
    load_E = smooth_load(router, torch.randn(30, 6))
    gradients = torch.autograd.grad(load_E.square().sum(), list(router.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 1e-3 for g in gradients)


def test_padding_is_in_no_load() -> None:
    router, valid_T = drawn(), torch.arange(20) % 2 == 0
    x_TD = torch.randn(20, 6).masked_fill(~valid_T[:, None], NAN)
    loads = [smooth_load(router, x_TD, valid_T=valid_T) for _ in range(200)]
    assert torch.stack(loads).sum(1).mean().item() == pytest.approx(20, rel=0.05)  # 10 tokens, two experts each
    torch.autograd.backward(loads[0].square().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_that_dies_out_leaves_gradients_finite(dtype: torch.dtype) -> None:
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


def test_gates_are_a_softmax_over_the_noisy_logits_kept() -> None:
    router, x_TD = drawn(), torch.randn(50, 6)
    routing = router(x_TD)
    assert torch.allclose(routing.gate_TK.sum(1), torch.ones(50))
    assert (routing.gate_TK[:, 0] >= routing.gate_TK[:, 1]).all()
    clean_TK = routing.logits_TE.gather(1, routing.expert_TK).softmax(1)
    assert not torch.allclose(routing.gate_TK, clean_TK, atol=0.05)
    assert torch.equal(routing.scores_TE, (x_TD @ router.weight_ED.T).softmax(1))


def test_noise_is_fresh_for_every_token_and_every_call() -> None:
    router, x_TD = noisy(), torch.ones(200, 6)
    once, again = router(x_TD), router(x_TD)
    assert len({tuple(row) for row in once.expert_TK.tolist()}) > 30  # of 56 ordered pairs
    assert not torch.equal(once.expert_TK, again.expert_TK)


def test_evaluation_is_deterministic_and_draws_nothing() -> None:
    router, x_TD = drawn().eval(), torch.randn(20, 6)
    before = torch.get_rng_state()
    routing = router(x_TD)
    assert torch.equal(torch.get_rng_state(), before)
    assert routing.smooth_load_E is None
    assert torch.equal(routing.gate_TK, router(x_TD).gate_TK)
    torch.testing.assert_close(routing.gate_TK, routing.logits_TE.topk(2).values.softmax(1))


def test_ties_of_zero_weights_go_to_the_lowest_in_evaluation() -> None:
    assert noisy().eval()(torch.randn(3, 6)).expert_TK.tolist() == [[0, 1]] * 3


def test_gates_train_both_matrices_from_where_they_start() -> None:
    router = noisy()
    routing = router(torch.randn(30, 6))
    gradients = torch.autograd.grad(routing.gate_TK[:, 0].sum(), list(router.parameters()))
    assert all(g.abs().max() > 1e-3 for g in gradients)


def test_noise_is_fp32_in_a_bf16_model_under_autocast() -> None:
    router = drawn().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(torch.randn(500, 6, dtype=torch.bfloat16))
    assert routing.smooth_load_E is not None
    assert {routing.gate_TK.dtype, routing.smooth_load_E.dtype, routing.logits_TE.dtype} == {torch.float32}
    exact = routing.gate_TK == routing.gate_TK.bfloat16().float()
    assert exact.float().mean() < 0.1  # gates that had been bf16 would all be


# --- selection bias ---------------------------------------------------------------------------------------------------


def test_a_bias_chooses_and_is_in_no_gate() -> None:
    router, x_TD = drawn(), torch.randn(40, 6)
    bias_E = torch.tensor([0.0] * 7 + [100.0], requires_grad=True)
    torch.manual_seed(0)
    routing = router(x_TD, selection_bias_E=bias_E)
    assert routing.load_E()[7] == 40
    assert (routing.gate_TK[:, 0] < 1).any()  # the favourite comes first by the bias, and its gate is as it was
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E[7].item() == pytest.approx(40)
    (gradient,) = torch.autograd.grad(
        routing.smooth_load_E.square().sum() + routing.gate_TK.square().sum(), bias_E, allow_unused=True
    )
    assert gradient is None


def test_a_constant_added_to_the_bias_changes_no_load() -> None:
    router, x_TD = drawn().double(), torch.randn(40, 6, dtype=torch.float64)
    bias_E = torch.randn(8)
    loads = []
    for constant in (0.0, 5.0):
        torch.manual_seed(0)
        loads.append(smooth_load(router, x_TD, selection_bias_E=bias_E + constant))
    torch.testing.assert_close(loads[0], loads[1], rtol=1e-6, atol=1e-6)


def test_a_banned_expert_expects_no_load_and_keeps_gradients_finite() -> None:
    router, bias_E = drawn(), torch.tensor([0.0, -INF] + [0.0] * 6)
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


# --- NaN, padding, no tokens, weights, refusals -----------------------------------------------------------------------


def test_a_token_with_nan_keeps_to_itself() -> None:
    router, x_TD = drawn(), torch.randn(5, 6)
    torch.manual_seed(0)
    clean = router(x_TD)
    x_TD[2, 3] = NAN
    torch.manual_seed(0)
    routing = router(x_TD)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(routing.expert_TK[others], clean.expert_TK[others])
    assert torch.equal(routing.gate_TK[others], clean.gate_TK[others])
    assert routing.gate_TK[2].isnan().all()
    assert len(set(routing.expert_TK[2].tolist())) == 2


def test_no_tokens() -> None:
    routing = drawn()(torch.empty(0, 6), valid_T=torch.empty(0, dtype=torch.bool), selection_bias_E=torch.zeros(8))
    assert routing.expert_TK.shape == routing.gate_TK.shape == (0, 2)
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == [0.0] * 8


def test_both_matrices_count_and_start_at_zero_unless_told() -> None:
    router = noisy(E=256, D=512, top_k=4)
    assert sum(p.numel() for p in router.parameters()) == 2 * 512 * 256
    assert not any(p.any() for p in router.parameters())
    router.init_weights(Init(std=0.02))
    assert not any(p.any() for p in router.parameters())
    other = noisy(E=256, D=512, top_k=4, zero_init=False)
    assert all(p.std() > 0.02 for p in other.parameters())
    other.init_weights(Init(std=0.006))
    assert all(p.std().item() == pytest.approx(0.006, rel=0.02) for p in other.parameters())


def test_what_makes_no_sense_is_refused() -> None:
    assert NoisyTopK(top_k=4).active(256) == 4
    assert NoisyTopK.gives_smooth_load and NoisyTopK.causal and NoisyTopK.takes_bias
    with pytest.raises(ValueError, match="no gradient reaches the router: set top_k >= 2"):
        NoisyTopK(top_k=1)
    with pytest.raises(ValueError, match=r"noise_epsilon=-1\.0 is out of range"):
        NoisyTopK(top_k=2, noise_epsilon=-1.0)
    with pytest.raises(MoekitError, match="router noisy_topk: top_k=9 is more than the 8 experts there are"):
        noisy(top_k=9)
    with pytest.raises(ValueError, match="top_k=9 is more than the 8 experts there are: lower top_k"):
        MoE(router=NoisyTopK(top_k=9), experts=ExpertSpec(count=8), dispatcher=DispatcherSpec())
