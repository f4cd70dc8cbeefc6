"""The reference of expert parallelism equals the loop dispatcher on each rank, and sends the predicted number of rows.

The dispatcher itself is compared with it in several processes (``expert_parallel_run``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moekit.contracts import LayerDims
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_dispatchers.expert_parallel.naive import naive_exchange
from moekit_dispatchers.loop import Loop
from moekit_plan.traffic import rows_of
from moekit_testing.fixtures.reference import TanhExperts
from moekit_testing.fixtures.routings import some_routing

E, D, O = 8, 4, 3  # noqa: E741


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("K", [1, 3, 8])
def test_the_reference_equals_the_loop_on_every_rank(size: int, K: int) -> None:
    bank, loop = TanhExperts(E, D, O), build(Loop(), LayerDims(dim=D, num_experts=E, out_dim=O))

    def expert(e: int) -> Callable[[Tensor], Tensor]:
        return lambda x_D: torch.tanh(bank.w_EOD[e] @ x_D + bank.b_EO[e])

    held = E // size
    experts = [[expert(e) for e in range(r * held, (r + 1) * held)] for r in range(size)]
    routings = [some_routing("token_choice", 5 * (r % 3), E, K=K, seed=r) for r in range(size)]
    x = [torch.randn(5 * (r % 3), D, dtype=torch.float64) for r in range(size)]
    choices = []
    for routing in routings:
        assert isinstance(routing, TokenChoice)
        rows = zip(routing.expert_TK.tolist(), routing.gate_TK, strict=True)
        choices.append([list(zip(experts_K, gate_K, strict=True)) for experts_K, gate_K in rows])
    y, sent = naive_exchange(x, choices, experts, O)
    for r, (x_TD, routing) in enumerate(zip(x, routings, strict=True)):
        torch.testing.assert_close(y[r], loop(x_TD, routing, bank).y_TO, rtol=0, atol=1e-12)
        assert sum(sent[r]) - sent[r][r] == rows_of(routing, size, r)
