"""The router against the paper's equations in plain loops, and the paper's statements about its loads."""

from __future__ import annotations

import math

import pytest
import torch
from moekit_expert_choice import ExpertChoiceRouter, ExpertChoiceSpec
from torch import Tensor

from moekit import LayerDims, MoekitError, load


def naive(x_TD: Tensor, weight_ED: Tensor, c: int) -> tuple[list[list[int]], list[list[Tensor]]]:
    """Each expert's chosen tokens and gates, best first: ``S = softmax(X W)``, top ``c·T/E`` of each column."""
    T, E = x_TD.shape[0], weight_ED.shape[0]
    scores = []
    for t in range(T):
        exps = [torch.exp(weight_ED[e] @ x_TD[t]) for e in range(E)]
        scores.append([value / sum(exps) for value in exps])
    places = math.ceil(c * T / E)
    tokens, gates = [], []
    for e in range(E):
        best = sorted(range(T), key=lambda t: (-scores[t][e].item(), t))[:places]
        tokens.append(best)
        gates.append([scores[t][e] for t in best])
    return tokens, gates


def router(c: int = 2, dim: int = 5, num_experts: int = 4) -> ExpertChoiceRouter:
    return ExpertChoiceRouter(ExpertChoiceSpec(per_token=c), LayerDims(dim=dim, num_experts=num_experts)).double()


@pytest.mark.parametrize(("c", "T"), [(1, 8), (2, 8), (2, 13), (4, 3), (1, 1)])
def test_routing_and_gradients_equal_the_equations(c: int, T: int) -> None:
    torch.manual_seed(0)
    mine, x_TD = router(c), torch.randn(T, 5, dtype=torch.float64, requires_grad=True)
    routing = mine(x_TD)
    tokens, gates = naive(x_TD, mine.weight_ED, c)
    assert routing.token_EC.tolist() == tokens
    expected_EC = torch.stack([torch.stack(row) for row in gates])
    torch.testing.assert_close(routing.gate_EC, expected_EC, rtol=1e-12, atol=0)
    weigh_EC = torch.randn_like(expected_EC)
    found = torch.autograd.grad((routing.gate_EC * weigh_EC).sum(), (x_TD, mine.weight_ED))
    expected = torch.autograd.grad((expected_EC * weigh_EC).sum(), (x_TD, mine.weight_ED))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_every_expert_takes_the_same_number_of_tokens() -> None:
    routing = router(c=1, num_experts=2)(torch.randn(4, 5, dtype=torch.float64))
    assert routing.load_E().tolist() == [2, 2]  # k = T·c/E = 4·1/2


def test_with_per_token_equal_to_the_experts_every_pair_is_chosen() -> None:
    routing = router(c=4)(torch.randn(6, 5, dtype=torch.float64))
    assert routing.load_E().tolist() == [6, 6, 6, 6]
    torch.testing.assert_close(routing.gate_EC.sum(), torch.tensor(6.0, dtype=torch.float64))


def test_padding_is_never_chosen() -> None:
    x_TD, valid_T = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3 == 0
    mine = router(c=2)
    padded, alone = mine(x_TD, valid_T=valid_T), mine(x_TD[valid_T])
    assert padded.load_E().tolist() == alone.load_E().tolist() == [2, 2, 2, 2]
    for e in range(4):
        chosen = [t for t in padded.token_EC[e].tolist() if valid_T[t]]
        assert [t // 3 for t in chosen] == alone.token_EC[e].tolist()


def test_per_token_above_the_number_of_experts_is_refused() -> None:
    with pytest.raises(MoekitError, match="per_token=5 is more than the layer's 4 experts"):
        router(c=5)


def test_a_decoder_refuses_expert_choice() -> None:
    dotlist = ["model.moe.router={use: expert_choice}", "model.moe.balancers=null"]
    with pytest.raises(MoekitError, match=r"ExpertChoiceSpec .*not causal"):
        load("deepseek_v3", dotlist)
