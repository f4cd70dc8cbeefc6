from __future__ import annotations

import pytest
import torch

from moekit.training.balance import max_violation


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([6, 2, 4], 0.5),  # Wang et al.'s definition: (6 - 4) / 4
        ([5, 5, 5, 5], 0.0),
        ([8, 0, 0, 0], 3.0),  # E - 1
        ([0, 0, 0], 0.0),
        ([7], 0.0),
    ],
)
def test_max_violation(load: list[int], expected: float) -> None:
    assert max_violation(torch.tensor(load)).item() == pytest.approx(expected, rel=1e-6)


def test_max_violation_keeps_leading_dimensions() -> None:
    load_LE = torch.tensor([[6, 2, 4], [0, 0, 0], [3, 3, 3]])
    assert max_violation(load_LE).tolist() == [0.5, 0.0, 0.0]
    assert max_violation(load_LE.double()).tolist() == [0.5, 0.0, 0.0]


def test_max_violation_does_not_round_counts() -> None:
    assert max_violation(torch.tensor([2**40 + 1, 2**40])).item() > 0
