from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import TokenChoice
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sequence_balance.module import SequenceBalanceLoss
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


def routing_of(scores_TE: Tensor, expert_TK: Tensor, valid_T: Tensor | None = None) -> TokenChoice:
    return TokenChoice(
        logits_TE=scores_TE,
        scores_TE=scores_TE,
        valid_T=valid_T,
        expert_TK=expert_TK,
        gate_TK=scores_TE.gather(1, expert_TK),
    )


def loss_of(routing: TokenChoice, num_sequences: int = 1, count: str = "routed") -> Tensor:
    balancer = SequenceBalanceLoss(SequenceBalance(count=count), LayerDims(dim=1, num_experts=routing.num_experts))
    return balancer.loss(routing, BalanceContext(num_sequences=num_sequences, training=True)).value


@pytest.mark.parametrize(("E", "K"), [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_it_is_one_at_balance_for_any_k(E: int, K: int) -> None:
    expert_TK = torch.tensor([[(t + k) % E for k in range(K)] for t in range(2 * E)])
    assert loss_of(routing_of(torch.full((2 * E, E), 0.3), expert_TK), 2).item() == pytest.approx(1)


def test_each_sequence_is_balanced_on_its_own() -> None:
    """Two sequences, uneven in opposite ways: even together, uneven apart."""
    scores_TE = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3)
    routing = routing_of(scores_TE, torch.tensor([[0]] * 3 + [[1]] * 3))
    assert loss_of(routing, num_sequences=1).item() == pytest.approx(1)
    assert loss_of(routing, num_sequences=2).item() == pytest.approx(2 * 0.9)


def test_sigmoids_are_normalised_over_all_experts() -> None:
    routing = routing_of(torch.tensor([[0.9, 0.6, 0.5, 0.0]]), torch.tensor([[0, 1]]))
    assert loss_of(routing).item() == pytest.approx(4 / 2 * (0.9 + 0.6) / 2.0)  # not over the two chosen


def test_what_f_counts_is_a_switch() -> None:
    dims = LayerDims(dim=4, num_experts=4)
    router, x_TD = TopKRouter(TopK(top_k=1, score="sigmoid"), dims), torch.randn(8, 4)
    routing = router(x_TD, selection_bias_E=torch.tensor([9.0, 0.0, 0.0, 0.0]))  # every token goes to expert 0
    plain = router(x_TD)
    assert loss_of(routing, count="affinity").item() == loss_of(plain).item()
    assert loss_of(routing).item() == pytest.approx(
        4 * (plain.scores_TE / plain.scores_TE.sum(1, True))[:, 0].mean().item()
    )


def test_padding_and_empty_sequences_count_nothing() -> None:
    scores_TE, expert_TK = torch.rand(6, 3, dtype=torch.float64), torch.tensor([[0], [1], [0], [2], [0], [1]])
    clean = loss_of(routing_of(scores_TE, expert_TK), 2)
    padded_TE = torch.full((12, 3), float("nan"), dtype=torch.float64)
    padded_TK = torch.zeros(12, 1, dtype=torch.int64)
    valid_T = torch.tensor([True, True, True, False] * 2 + [False] * 4)
    padded_TE[valid_T], padded_TK[valid_T] = scores_TE, expert_TK
    assert loss_of(routing_of(padded_TE, padded_TK, valid_T), 3).item() == pytest.approx(clean.item(), rel=1e-12)


def test_a_sequence_weighs_by_its_tokens_so_that_micro_batches_add_up() -> None:
    scores_TE, expert_TK = torch.rand(8, 3, dtype=torch.float64), torch.randint(0, 3, (8, 1))
    valid_T = torch.tensor([True, False, False, False, True, True, True, True])
    whole = loss_of(routing_of(scores_TE, expert_TK, valid_T), 2)
    parts = [loss_of(routing_of(scores_TE[i], expert_TK[i], valid_T[i])) for i in (slice(0, 4), slice(4, 8))]
    assert whole.item() == pytest.approx(((1 * parts[0] + 4 * parts[1]) / 5).item(), rel=1e-12)


@pytest.mark.parametrize("count", ["routed", "affinity"])
@pytest.mark.parametrize(("T", "B"), [(0, 0), (0, 2), (4, 2)])
def test_without_a_valid_token_it_is_zero(count: str, T: int, B: int) -> None:
    routing = routing_of(
        torch.full((T, 3), 0.5), torch.zeros(T, 1, dtype=torch.int64), torch.zeros(T, dtype=torch.bool)
    )
    assert loss_of(routing, B, count).item() == 0


def test_affinities_that_are_all_zero_give_no_nan() -> None:
    scores_TE = torch.zeros(3, 4, requires_grad=True)
    value = loss_of(routing_of(scores_TE, torch.tensor([[0], [1], [2]])))
    value.backward()
    assert value.item() == 0
    assert scores_TE.grad is not None
    assert scores_TE.grad.isfinite().all()


def test_it_compiles_whole_with_its_router() -> None:
    dims, context = LayerDims(dim=4, num_experts=4), BalanceContext(num_sequences=2, training=True)
    router, balancer = TopKRouter(TopK(top_k=2), dims), SequenceBalanceLoss(SequenceBalance(count="affinity"), dims)
    x_TD, valid_T = torch.randn(6, 4), torch.arange(6) < 5

    def run(x_TD: Tensor) -> Tensor:
        return balancer.loss(router(x_TD, valid_T=valid_T), context).value

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x_TD), run(x_TD))
