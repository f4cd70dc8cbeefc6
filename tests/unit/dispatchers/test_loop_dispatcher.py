from __future__ import annotations

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.contracts.layer import LoopGroups
from moekit.routing import Soft
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.linear import Linear
from moekit_experts.linear.module import LinearExperts


def test_groups_know_their_numbers() -> None:
    groups = LoopGroups([2, 0, 3])
    assert (groups.num_experts, groups.num_rows) == (3, 5)
    assert [len(part) for part in groups.split(torch.zeros(5, 1))] == [2, 0, 3]
    assert groups.per_row(torch.tensor([7, 8, 9])).tolist() == [7, 7, 9, 9, 9]


def test_linear_uses_each_experts_weight_and_bias() -> None:
    w_EHD, b_EH = torch.tensor([[[1.0]], [[10.0]], [[100.0]]]), torch.tensor([[0.1], [0.2], [0.3]])
    y_NH = LoopGroups([2, 0, 1]).linear(torch.tensor([[1.0], [2.0], [3.0]]), w_EHD, b_EH)
    torch.testing.assert_close(y_NH, torch.tensor([[1.1], [2.1], [300.3]]))


def test_a_soft_routing_is_refused() -> None:
    dims = LayerDims(dim=2, num_experts=2)
    soft = Soft(logits_TE=torch.zeros(3, 2), scores_TE=torch.zeros(3, 2), combine_TEP=torch.zeros(3, 2, 1))
    message = r"forms token_choice, expert_choice\), but the router gave 'soft'; the dispatcher 'soft' takes that"
    with pytest.raises(ValueError, match=message):
        LoopDispatcher(Loop(), dims)(torch.zeros(3, 2), soft, LinearExperts(Linear(count=2), dims))
