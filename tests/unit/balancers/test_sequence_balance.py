from __future__ import annotations

import pytest
import torch
from routings import loss_of, token_choice

from moekit.contracts import LayerDims
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


def test_each_sequence_is_balanced_on_its_own() -> None:
    """Two sequences, uneven in opposite ways: even together, uneven apart."""
    scores_TE = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3)
    routing = token_choice(scores_TE, [[0]] * 3 + [[1]] * 3)
    assert loss_of(SequenceBalance(), routing).item() == pytest.approx(1)
    assert loss_of(SequenceBalance(), routing, 2).item() == pytest.approx(2 * 0.9)


def test_f_counts_the_chosen_or_those_of_highest_affinity() -> None:
    dims = LayerDims(dim=4, num_experts=4)
    router, x_TD = TopKRouter(TopK(top_k=1, score="sigmoid"), dims), torch.randn(8, 4)
    routing = router(x_TD, selection_bias_E=torch.tensor([9.0, 0.0, 0.0, 0.0]))  # every token goes to expert 0
    plain = router(x_TD)
    assert loss_of(SequenceBalance(count="affinity"), routing).item() == loss_of(SequenceBalance(), plain).item()
    assert loss_of(SequenceBalance(), routing).item() == pytest.approx(
        4 * (plain.scores_TE / plain.scores_TE.sum(1, True))[:, 0].mean().item()
    )


def test_sequences_are_weighted_by_their_tokens_so_that_micro_batches_add_up() -> None:
    scores_TE, expert_TK = torch.rand(8, 3, dtype=torch.float64), torch.randint(0, 3, (8, 1))
    valid_T = torch.tensor([True, False, False, False, True, True, True, True])
    whole = loss_of(SequenceBalance(), token_choice(scores_TE, expert_TK, valid_T), 2)
    parts = [
        loss_of(SequenceBalance(), token_choice(scores_TE[i], expert_TK[i], valid_T[i]))
        for i in (slice(0, 4), slice(4, 8))
    ]
    assert whole.item() == pytest.approx(((1 * parts[0] + 4 * parts[1]) / 5).item(), rel=1e-12)
