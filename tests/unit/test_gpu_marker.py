"""The plain suite sees no GPU; ``-m gpu`` does."""

from __future__ import annotations

import pytest
import torch
from gpu_marker import wants_gpu


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], False),
        (["-m", "gpu"], True),
        (["tests", "-q", "-m", "gpu or slow"], True),
        (["-mgpu"], True),
        (["-m", "not slow and not gpu"], False),
        (["-m", "slow"], False),
        (["-m", "gpu", "-m", "slow"], False),
        (["-k", "gpu"], False),
        (["-m"], False),
    ],
)
def test_a_gpu_is_seen_only_where_the_marker_asks_for_it(arguments: list[str], expected: bool) -> None:
    assert wants_gpu(arguments) == expected


def test_this_process_sees_none() -> None:
    assert not torch.cuda.is_available()
