from __future__ import annotations

import pytest
import torch

from moekit.contracts import Init, LayerDims
from moekit.training.balance import max_violation
from moekit_balancers.sign_bias import SignBias
from moekit_balancers.sign_bias.module import SignBiasBalancer
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


def balancer_of(num_experts: int = 3, rate: float = 1e-3, rule: str = "sign") -> SignBiasBalancer:
    return SignBiasBalancer(SignBias(rate=rate, rule=rule), LayerDims(dim=4, num_experts=num_experts))


def proportional(num_experts: int = 3, rate: float = 0.125) -> SignBiasBalancer:
    return balancer_of(num_experts, rate, "proportional")


def test_an_overloaded_expert_loses_and_an_idle_one_gains() -> None:
    balancer, load_E = balancer_of(rate=0.125), torch.tensor([6, 2, 4])
    balancer.step(load_E)
    assert balancer.selection_bias().tolist() == [-0.125, 0.125, 0.0]
    assert max_violation(load_E).item() == 0.5
    balancer.step(load_E)
    assert balancer.selection_bias().tolist() == [-0.25, 0.25, 0.0]


def test_a_proportional_step_is_the_relative_distance_from_the_mean_load() -> None:
    balancer = proportional()
    balancer.step(torch.tensor([6, 2, 4]))
    assert balancer.selection_bias().tolist() == [-0.0625, 0.0625, 0.0]
    one_batch, thousandfold = proportional(), proportional()
    one_batch.step(torch.tensor([5, 4, 0]))
    thousandfold.step(torch.tensor([5000, 4000, 0]))
    assert torch.equal(one_batch.selection_bias(), thousandfold.selection_bias())


def test_a_proportional_step_is_the_rate_for_an_idle_expert_and_one_minus_e_times_it_for_a_lone_one() -> None:
    balancer = proportional(4)
    balancer.step(torch.tensor([0, 8, 0, 0]))
    assert balancer.selection_bias().tolist() == [0.125, -0.375, 0.125, 0.125]


def test_a_proportional_step_subtracts_counts_exactly() -> None:
    balancer = proportional(rate=1.0)
    balancer.step(torch.tensor([2**40 + 1, 2**40, 2**40]))
    busy, *idle = balancer.selection_bias().tolist()
    assert busy == pytest.approx(-2 / 3 / 2**40, rel=1e-6)
    assert idle == pytest.approx([1 / 3 / 2**40] * 2, rel=1e-6)


@pytest.mark.parametrize("rule", ["sign", "proportional"])
def test_the_bias_stays_fixed_from_a_fraction_of_training_on(rule: str) -> None:
    """DeepSeek-V3: the bias moves for 14.3 of 14.8 trillion tokens."""
    spec = SignBias(rate=0.5, rule=rule, until=14.3 / 14.8)
    balancer = SignBiasBalancer(spec, LayerDims(dim=1, num_experts=2))
    for step in range(1000):
        before = balancer.selection_bias().clone()
        balancer.step(torch.tensor([2, 0]), progress=step / 1000)
        assert torch.equal(balancer.selection_bias(), before) is (step >= 967)


def test_by_default_the_bias_always_moves_and_with_until_zero_never() -> None:
    moving, fixed = balancer_of(2), SignBiasBalancer(SignBias(until=0.0), LayerDims(dim=1, num_experts=2))
    for balancer in (moving, fixed):
        balancer.step(torch.tensor([2, 0]), progress=1.0)
        balancer.step(torch.tensor([2, 0]))
    assert moving.selection_bias().tolist() == pytest.approx([-0.002, 0.002])
    assert fixed.selection_bias().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rule", ["sign", "proportional"])
@pytest.mark.parametrize("load", [[0, 0, 0], [5, 5, 5]])
def test_no_tokens_and_perfect_balance_move_nothing(load: list[int], rule: str) -> None:
    balancer = SignBiasBalancer(SignBias(rule=rule), LayerDims(dim=4, num_experts=3))
    balancer.step(torch.tensor(load))
    assert balancer.selection_bias().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
def test_counts_are_compared_exactly(dtype: torch.dtype) -> None:
    balancer = balancer_of(rate=1.0)
    load_E = torch.tensor([2**24 + 1, 2**24, 2**24], dtype=dtype)  # equal in fp32, and in bf16
    balancer.step(load_E)
    assert balancer.selection_bias().tolist() == [-1.0, 1.0, 1.0]


def test_two_micro_batches_and_one_step_move_the_bias_once() -> None:
    router, x_TD = TopKRouter(TopK(top_k=2, score="sigmoid"), LayerDims(dim=4, num_experts=3)), torch.randn(20, 4)
    small, big = balancer_of(), balancer_of()
    halves = [router(half, selection_bias_E=small.selection_bias()) for half in x_TD.split([7, 13])]
    before = small.selection_bias().clone()
    small.step(halves[0].load_E() + halves[1].load_E())
    big.step(router(x_TD, selection_bias_E=big.selection_bias()).load_E())
    assert torch.equal(small.selection_bias(), big.selection_bias())
    moved_E = (small.selection_bias() - before).abs()
    assert moved_E.max().item() == pytest.approx(1e-3)


@pytest.mark.parametrize(("rule", "steps", "bound"), [("sign", 100, 0.2), ("proportional", 300, 0.1)])
def test_repeated_steps_bring_the_load_into_balance(rule: str, steps: int, bound: float) -> None:
    """Proportional steps, which get smaller, do not oscillate."""
    torch.manual_seed(3)
    router = TopKRouter(TopK(top_k=2, score="sigmoid"), LayerDims(dim=4, num_experts=8))
    router.init_weights(Init(std=0.5))
    balancer, x_TD = balancer_of(8, 1e-2, rule), torch.randn(1000, 4) + 0.5
    before = max_violation(router(x_TD).load_E())
    for _ in range(steps):
        balancer.step(router(x_TD, selection_bias_E=balancer.selection_bias()).load_E())
    after = max_violation(router(x_TD, selection_bias_E=balancer.selection_bias()).load_E())
    assert after < bound < 0.7 < before


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float"])
def test_the_bias_stays_fp32_and_keeps_its_bits_when_the_model_is_cast(cast: str) -> None:
    model = torch.nn.ModuleDict({"balancer": balancer_of(), "linear": torch.nn.Linear(2, 2)})
    balancer = model["balancer"]
    assert isinstance(balancer, SignBiasBalancer)
    for _ in range(1001):
        balancer.step(torch.tensor([3, 0, 0]))
    before = balancer.selection_bias().clone()  # -1.001 is not a bf16 number
    getattr(model, cast)()
    assert balancer.selection_bias().dtype == torch.float32
    assert list(balancer.state_dict()) == ["bias_E"]
    assert torch.equal(balancer.selection_bias(), before)
    model.to(torch.bfloat16)
    assert torch.equal(balancer.selection_bias(), before)
    assert model["linear"].weight.dtype == torch.bfloat16
    balancer.step(torch.tensor([3, 0, 0]))
    assert not torch.equal(balancer.selection_bias(), before)
