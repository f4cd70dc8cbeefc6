from __future__ import annotations

import torch

from moekit_dispatchers.loop.module import LoopGroups


def test_groups_know_their_sizes() -> None:
    groups = LoopGroups([2, 0, 3])
    assert (groups.num_experts, groups.num_rows) == (3, 5)
    assert [len(part) for part in groups.split(torch.zeros(5, 1))] == [2, 0, 3]
    assert groups.per_row(torch.tensor([7, 8, 9])).tolist() == [7, 7, 9, 9, 9]


def test_linear_uses_each_experts_weight_and_bias() -> None:
    w_EHD, b_EH = torch.tensor([[[1.0]], [[10.0]], [[100.0]]]), torch.tensor([[0.1], [0.2], [0.3]])
    y_NH = LoopGroups([2, 0, 1]).linear(torch.tensor([[1.0], [2.0], [3.0]]), w_EHD, b_EH)
    torch.testing.assert_close(y_NH, torch.tensor([[1.1], [2.1], [300.3]]))
