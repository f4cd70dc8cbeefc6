"""Properties of the hierarchical gate of Shazeer et al. 2017. It equals its equations in tests/oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moekit.contracts import Init, LayerDims
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.hierarchical.module import HierarchicalRouter

NAN = float("nan")


def random_router(E: int = 12, D: int = 6, **options: Any) -> HierarchicalRouter:
    spec = Hierarchical(**({"branches": 4, "zero_init": False} | options))
    router = HierarchicalRouter(spec, LayerDims(dim=D, num_experts=E))
    router.init_weights(Init(std=0.5))
    return router


def test_a_token_takes_top_k_experts_in_each_of_its_groups() -> None:
    routing = random_router(top_groups=3)(torch.randn(100, 6))
    assert routing.expert_TK.shape == (100, 6)
    for row in routing.expert_TK.tolist():
        assert len(set(row)) == 6
        groups = [e // 3 for e in row]
        assert groups == [g for g in groups[::2] for _ in (0, 1)]
        assert len(set(groups)) == 3


def test_scores_multiply_both_levels_and_a_z_loss_acts_on_the_first() -> None:
    router = random_router()
    routing = router(x_TD := torch.randn(9, 6))
    prim_TG = (x_TD @ router.group_weight_GD.T).softmax(1)
    sec_TGX = (x_TD @ router.weight_ED.T).view(9, 4, 3).softmax(2)
    torch.testing.assert_close(routing.scores_TE, (prim_TG[:, :, None] * sec_TGX).flatten(1))
    torch.testing.assert_close(routing.scores_TE.sum(1), torch.ones(9))
    torch.testing.assert_close(routing.logits_TE.logsumexp(1), (x_TD @ router.group_weight_GD.T).logsumexp(1))


def test_a_group_that_no_token_chose_still_trains_the_first_level() -> None:
    router = random_router(branches=3, E=9)
    routing = router(torch.randn(1, 6))
    (idle,) = set(range(3)) - set((routing.expert_TK[0] // 3).tolist())
    load_E = routing.smooth_load_E
    assert load_E is not None
    idle_E = load_E[3 * idle : 3 * idle + 3]
    assert torch.equal(idle_E, idle_E[:1].expand(3))  # the probability of the group, split evenly: 2 of 3 experts
    assert 0 < idle_E[0] < 2 / 3
    idle_E.sum().backward()
    assert router.group_weight_GD.grad is not None
    assert router.group_weight_GD.grad[idle].abs().max() > 0


@pytest.mark.parametrize("E", [256, 1024, 4096])
def test_the_papers_count_has_noise_weights_at_both_levels(E: int) -> None:
    with torch.device("meta"):
        router = HierarchicalRouter(Hierarchical(branches=16), LayerDims(dim=512, num_experts=E))
    gates = sum(p.numel() for p in router.parameters())
    assert gates == 2 * 512 * 16 + 2 * 512 * E
    lstms, experts = 2 * (4 * (512 + 512) * 512 + 4 * 512), E * 2 * 512 * 1024
    published = {256: 272.912, 1024: 1079.005, 4096: 4303.376}
    assert (lstms + experts + gates) / 1e6 == pytest.approx(published[E], abs=5e-4)
