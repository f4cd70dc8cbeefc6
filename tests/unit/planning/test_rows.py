"""Rows that tokens send, expected and counted over real routings."""

from __future__ import annotations

import pytest
import torch

from moekit import LayerDims
from moekit.parallel.traffic import rows_of
from moekit.registry import build
from moekit_routers.topk import TopK

T = 4096


@pytest.mark.parametrize("ep", [2, 4, 8])
@pytest.mark.parametrize(("E", "K"), [(64, 6), (16, 2), (16, 1)])
def test_free_choices(E: int, K: int, ep: int) -> None:
    """Within two hundredths: some experts are liked more than others, by chance."""
    spec = TopK(top_k=K)
    assert counted(spec, E, ep) == pytest.approx(spec.ranks_reached(E, ep) * (ep - 1) / ep, rel=0.02)


@pytest.mark.parametrize("ep", [2, 4, 8, 16])
def test_choices_within_groups(ep: int) -> None:
    """A group is chosen for its best experts, so a token reaches somewhat more ranks than if it were drawn."""
    spec = TopK(top_k=8, score="sigmoid", groups=8, top_groups=4, group_score="top2_sum", renormalize=True)
    expected = spec.ranks_reached(64, ep) * (ep - 1) / ep
    assert expected <= counted(spec, 64, ep) < 1.1 * expected


def counted(spec: TopK, E: int, ep: int) -> float:
    """Rows a token, mean over the ranks that it could stand on."""
    torch.manual_seed(1)
    routing = build(spec, LayerDims(dim=256, num_experts=E))(torch.randn(T, 256))
    return sum(rows_of(routing, ep, rank) for rank in range(ep)) / ep / T
