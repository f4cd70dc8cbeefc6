from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_forked
from routings import loss_of, token_choice
from torch import Tensor

from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.fields import ConflictError
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance.module import LoadBalanceLoss
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

RANK = Path(__file__).with_name("load_balance_rank.py")
SCOPES = ["sequence", "micro_batch", "global_batch", "step"]


def load_loss(routing: TokenChoice, *, num_sequences: int = 1, **options: Any) -> Tensor:
    return loss_of(LoadBalance(**options), routing, num_sequences)


def test_the_worked_example_of_switch_transformer() -> None:
    routing = token_choice([[0.6, 0.4]] * 4, [[0], [0], [0], [1]])
    loss = loss_of(LoadBalance(weight=0.01), routing).item()
    assert 0.01 * loss == pytest.approx(0.011)  # f = (.75, .25), P = (.6, .4)


def test_the_balanced_value_is_not_a_lower_bound() -> None:
    routing = token_choice([[0.51, 0.49]] * 3 + [[0.0, 1.0]], [[0], [0], [0], [1]])
    assert load_loss(routing).item() == pytest.approx(0.8825)


def test_raw_sigmoids_at_balance_give_e_times_their_mean() -> None:
    routing = token_choice([[0.7] * 4] * 4, [[t] for t in range(4)])
    assert load_loss(routing).item() == pytest.approx(1)
    assert load_loss(routing, normalize=False).item() == pytest.approx(4 * 0.7)


def test_first_choices_alone_can_be_counted() -> None:
    """GShard, ST-MoE: the second choices are uneven in one routing and even in the other; only the first count."""
    even = token_choice([[0.6, 0.3, 0.1]] * 3, [[0, 1], [1, 2], [2, 0]])
    uneven = token_choice([[0.6, 0.3, 0.1]] * 3, [[0, 1], [1, 0], [2, 0]])
    assert load_loss(even, count="first").item() == load_loss(uneven, count="first").item() == pytest.approx(1)
    assert load_loss(uneven).item() == pytest.approx(3 * (0.6 * 3 + 0.3 * 2 + 0.1) / 6)
    one = token_choice([[0.6, 0.3, 0.1]] * 3, [[0], [1], [0]])
    assert load_loss(one, count="first").item() == load_loss(one).item()


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "global_batch"])
@pytest.mark.parametrize(("E", "K"), [(4, 2), (6, 3)])
def test_counting_first_choices_gives_e_at_collapse(scope: str, E: int, K: int) -> None:
    collapsed = token_choice([[1.0] + [0.0] * (E - 1)] * 4, [list(range(K))] * 4)
    assert load_loss(collapsed, count="first", num_sequences=2, scope=scope).item() == pytest.approx(E)
    assert load_loss(collapsed, num_sequences=2, scope=scope).item() == pytest.approx(E / K)


def test_counting_first_choices_of_a_step_is_rejected() -> None:
    with pytest.raises(ConflictError, match="the load of a step counts all choices; set count=all, or scope=global_ba"):
        LoadBalance(count="first", scope="step")


def parts_of(router: TopKRouter, balancer: LoadBalanceLoss, xs: list[Tensor], num_sequences: list[int]) -> Tensor:
    """The router's gradient of the loss of a step in parts, each weighted by its tokens."""
    total = sum(x.shape[0] for x in xs)
    router.zero_grad()
    for x_TD, B in zip(xs, num_sequences, strict=True):
        value = balancer.loss(router(x_TD), BalanceContext(num_sequences=B, training=True)).value
        (value * x_TD.shape[0] / total).backward()
    assert router.weight_ED.grad is not None
    return router.weight_ED.grad.clone()


@pytest.mark.parametrize(("scope", "same"), [("step", True), ("sequence", True), ("micro_batch", False)])
def test_micro_batches_add_up_to_the_batch_in_the_scopes_step_and_sequence(scope: str, same: bool) -> None:
    dims = LayerDims(dim=4, num_experts=5)
    router = TopKRouter(TopK(top_k=2), dims).double()
    balancer = LoadBalanceLoss(LoadBalance(scope=scope), dims)
    balancer.step(torch.tensor([9, 1, 3, 0, 2]))
    x_TD = torch.randn(24, 4, dtype=torch.float64)
    whole = parts_of(router, balancer, [x_TD], [6])
    parts = parts_of(router, balancer, list(x_TD.split([8, 4, 12])), [2, 1, 3])
    assert torch.allclose(whole, parts, rtol=1e-12, atol=1e-15) is same


def test_the_last_steps_load_starts_uniform_stays_fp32_and_is_saved() -> None:
    balancer = LoadBalanceLoss(LoadBalance(scope="step"), LayerDims(dim=1, num_experts=4))
    assert balancer.share_E.tolist() == [0.25] * 4
    balancer.step(torch.tensor([4, 2, 2, 0]))
    assert balancer.bfloat16().share_E.tolist() == [0.5, 0.25, 0.25, 0.0]
    balancer.step(torch.zeros(4, dtype=torch.int64))
    assert balancer.share_E.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert balancer.share_E.dtype == torch.float32
    assert list(balancer.state_dict()) == ["share_E"]
    assert list(LoadBalanceLoss(LoadBalance(), LayerDims(dim=1, num_experts=4)).state_dict()) == []


def test_a_step_between_forward_and_backward_does_not_break_backward() -> None:
    dims = LayerDims(dim=4, num_experts=3)
    router, balancer = TopKRouter(TopK(top_k=1), dims), LoadBalanceLoss(LoadBalance(scope="step"), dims)
    routing = router(torch.randn(6, 4))
    value = balancer.loss(routing, BalanceContext(num_sequences=1, training=True)).value
    balancer.step(routing.load_E())
    value.backward()
    assert router.weight_ED.grad is not None


def test_two_ranks_equal_one_with_all_tokens(tmp_path: Path) -> None:
    run_forked(RANK, 2, str(tmp_path / "rank"))
    for rank in range(2):
        alone, together = torch.load(tmp_path / f"rank{rank}")
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-15)
