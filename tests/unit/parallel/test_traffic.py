"""Computed traffic of expert parallelism. ``expert_parallel_run`` compares it with what several processes send."""

from __future__ import annotations

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.parallel.traffic import choices_of, reached, row_dtype, sent
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_plan.traffic import rows_of
from moekit_routers.topk import TopK
from moekit_testing.fixtures.routings import some_routing


def chosen(expert_TK: list[list[int]], E: int, **more: torch.Tensor) -> TokenChoice:
    expert = torch.tensor(expert_TK)
    scores_TE = torch.full((len(expert_TK), E), 1 / E)
    gate_TK = torch.ones(expert.shape)
    return TokenChoice(logits_TE=scores_TE.log(), scores_TE=scores_TE, expert_TK=expert, gate_TK=gate_TK, **more)


def test_a_token_is_one_row_for_each_other_rank_that_holds_its_experts() -> None:
    """Ranks hold experts 0 1, 2 3, 4 5, 6 7; seen from rank 1."""
    routing = chosen([[0, 1, 4], [2, 3, 7], [2, 4, 6], [5, 4, 2]], 8)
    assert rows_of(routing, 4, 1) == 2 + 1 + 2 + 1
    valid_T = torch.tensor([True, True, False, True])
    assert rows_of(chosen([[0, 1, 4], [2, 3, 7], [2, 4, 6], [5, 4, 2]], 8, valid_T=valid_T), 4, 1) == 2 + 1 + 1
    sent_TK = torch.tensor([[True, False, False]] * 4)
    assert rows_of(chosen([[0, 1, 4], [2, 3, 7], [2, 4, 6], [5, 4, 2]], 8, sent_TK=sent_TK), 4, 1) == 1 + 1
    assert rows_of(routing, 1, 0) == 0


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_a_row_is_sent_in_the_dtype_to_which_autocast_rounds_it(narrow: torch.dtype) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    assert [row_dtype(torch.ones(1, dtype=dtype)) for dtype in dtypes] == list(dtypes)
    with torch.autocast("cpu", narrow):
        assert [row_dtype(torch.ones(1, dtype=dtype)) for dtype in dtypes] == [narrow, *dtypes[1:]]
        assert row_dtype(torch.ones(1, device="meta")) == torch.float32, "autocast is on for the CPU alone"
        with torch.autocast("cpu", enabled=False):
            assert row_dtype(torch.ones(1)) == torch.float32


def test_a_row_lists_at_most_the_experts_of_a_rank() -> None:
    routing = some_routing("token_choice", 5, 8, K=3)
    assert [choices_of(routing, size) for size in (1, 2, 4, 8)] == [3, 3, 2, 1]
    assert choices_of(some_routing("expert_choice", 5, 8), 2) == 4


@pytest.mark.parametrize("groups", [4, 8])
@pytest.mark.parametrize("score", ["max", "top2_sum"])
def test_device_limited_routing_reaches_no_more_ranks(groups: int, score: str) -> None:
    """DeepSeek-V2's devices and V3's nodes are ranks, where there are as many groups as ranks, or a multiple."""
    x_TD = torch.randn(300, 16)
    dims = LayerDims(dim=16, num_experts=32)
    limited = build(TopK(top_k=6, groups=groups, top_groups=2, group_score=score), dims)(x_TD)
    free = build(TopK(top_k=6), dims)(x_TD)
    assert int(reached(sent(limited), 4).sum(1).max()) == 2
    assert int(reached(sent(free), 4).sum(1).max()) == 4
    assert rows_of(limited, 4, 0) < rows_of(free, 4, 0)
