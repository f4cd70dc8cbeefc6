"""Routing: loads and pairs, in each form, with and without padding."""

from __future__ import annotations

from dataclasses import replace

import routings
import torch

from moekit import ExpertChoice, Soft, TokenChoice
from moekit_balancers.shares import mean_score_BE, share_of


def token_choice(valid_T: torch.Tensor | None = None) -> TokenChoice:
    gate_TK = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    return routings.token_choice(torch.rand(3, 4), [[0, 2], [2, 3], [2, 0]], valid_T, gate_TK=gate_TK)


def test_token_choice_counts_every_choice() -> None:
    load_E = token_choice().load_E()
    assert load_E.dtype == torch.int64
    assert load_E.tolist() == [2, 0, 3, 1]


def test_load_and_mean_affinity_of_sequences_add_up_to_those_of_all_tokens() -> None:
    routing = replace(
        token_choice(), expert_TK=torch.tensor([[0, 2], [2, 3], [2, 0], [1, 0]]), scores_TE=torch.rand(4, 4)
    )
    assert routing.load_BE(2).tolist() == [[1, 0, 2, 1], [2, 1, 1, 0]]
    assert routing.load_BE(2).sum(0).tolist() == routing.load_E().tolist()
    torch.testing.assert_close(mean_score_BE(routing, 2, normalize=False).sum(0), routing.scores_TE.mean(0))
    torch.testing.assert_close(mean_score_BE(routing, 2, normalize=True).sum(), torch.tensor(1.0))
    assert share_of(routing.load_BE(2), torch.float64).tolist() == [[0.25, 0, 0.5, 0.25], [0.5, 0.25, 0.25, 0]]


def test_token_choice_excludes_padding() -> None:
    routing = token_choice(torch.tensor([True, False, True]))
    assert routing.load_E().tolist() == [2, 0, 2, 0]
    assert routing.num_valid() == 2
    pairs = routing.pairs()
    assert pairs.expert_N.tolist() == [0, 2, 4, 4, 2, 0], "E = 4: sent to no expert"
    assert pairs.token_N.tolist() == [0, 0, 1, 1, 2, 2]


def test_pairs_have_the_gates() -> None:
    assert torch.equal(token_choice().pairs().gate_N, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))


def expert_choice(valid_T: torch.Tensor | None = None) -> ExpertChoice:
    scores_TE = torch.rand(3, 2)
    return ExpertChoice(
        logits_TE=scores_TE,
        scores_TE=scores_TE,
        valid_T=valid_T,
        token_EC=torch.tensor([[2, 0], [1, 2]]),
        gate_EC=torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
    )


def test_expert_choice_has_its_pairs_expert_by_expert() -> None:
    routing = expert_choice()
    assert routing.load_E().tolist() == [2, 2]
    pairs = routing.pairs()
    assert pairs.token_N.tolist() == [2, 0, 1, 2]
    assert pairs.expert_N.tolist() == [0, 0, 1, 1]


def test_expert_choice_excludes_padding() -> None:
    routing = expert_choice(torch.tensor([True, True, False]))
    assert routing.load_E().tolist() == [1, 1]
    assert routing.pairs().expert_N.tolist() == [2, 0, 1, 2]


def test_soft_load_is_every_valid_token() -> None:
    combine_TEP = torch.rand(3, 2, 1)
    routing = Soft(
        logits_TE=combine_TEP[..., 0],
        scores_TE=combine_TEP[..., 0],
        valid_T=torch.tensor([True, False, True]),
        combine_TEP=combine_TEP,
    )
    assert routing.load_E().tolist() == [2, 2]
    assert routing.num_experts == 2


def test_a_routing_of_no_tokens_has_no_load_and_no_pairs() -> None:
    empty = routings.token_choice(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64))
    assert empty.load_E().tolist() == [0, 0, 0, 0]
    assert empty.pairs().token_N.shape == (0,)
    assert empty.num_valid() == 0
