"""What Shazeer et al. 2017 say of the hierarchical gate. The loops it must equal are in tests/oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moekit.contracts import Init, LayerDims
from moekit.errors import MoekitError
from moekit.spec.kinds import DispatcherSpec, ExpertSpec, MoE
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.hierarchical.module import HierarchicalRouter

NAN = float("nan")


def drawn(E: int = 12, D: int = 6, **options: Any) -> HierarchicalRouter:
    spec = Hierarchical(**({"branches": 4, "zero_init": False} | options))
    router = HierarchicalRouter(spec, LayerDims(dim=D, num_experts=E))
    router.init_weights(Init(std=0.5))
    return router


def test_a_token_takes_top_k_experts_in_each_of_its_groups() -> None:
    routing = drawn(top_groups=3)(torch.randn(100, 6))
    assert routing.expert_TK.shape == (100, 6)
    for row in routing.expert_TK.tolist():
        assert len(set(row)) == 6
        groups = [e // 3 for e in row]
        assert groups == [g for g in groups[::2] for _ in (0, 1)]
        assert len(set(groups)) == 3


def test_gates_are_products_and_sum_to_one() -> None:
    router = drawn().eval()
    routing = router(x_TD := torch.randn(50, 6))
    torch.testing.assert_close(routing.gate_TK.sum(1), torch.ones(50))
    within_TK = routing.gate_TK.view(50, 2, 2)
    group_TK = routing.expert_TK[:, ::2] // 3
    prim_TK = (x_TD @ router.group_weight_GD.T).gather(1, group_TK).softmax(1)
    torch.testing.assert_close(within_TK.sum(2), prim_TK)
    sec_TK = (x_TD @ router.weight_ED.T).gather(1, routing.expert_TK[:, :2]).softmax(1)
    torch.testing.assert_close(routing.gate_TK[:, :2] / prim_TK[:, :1], sec_TK)


def test_scores_are_the_levels_products_and_a_z_loss_sees_the_first() -> None:
    router = drawn()
    routing = router(x_TD := torch.randn(9, 6))
    prim_TG = (x_TD @ router.group_weight_GD.T).softmax(1)
    sec_TGX = (x_TD @ router.weight_ED.T).view(9, 4, 3).softmax(2)
    torch.testing.assert_close(routing.scores_TE, (prim_TG[:, :, None] * sec_TGX).flatten(1))
    torch.testing.assert_close(routing.scores_TE.sum(1), torch.ones(9))
    torch.testing.assert_close(routing.logits_TE.logsumexp(1), (x_TD @ router.group_weight_GD.T).logsumexp(1))


def test_a_group_that_nobody_chose_still_teaches_the_first_level() -> None:
    router = drawn(branches=3, E=9)
    routing = router(torch.randn(1, 6))
    (idle,) = set(range(3)) - set((routing.expert_TK[0] // 3).tolist())
    load_E = routing.smooth_load_E
    assert load_E is not None
    idle_E = load_E[3 * idle : 3 * idle + 3]
    assert torch.equal(idle_E, idle_E[:1].expand(3))  # the chance of the group, shared evenly: 2 of 3 experts
    assert 0 < idle_E[0] < 2 / 3
    idle_E.sum().backward()
    assert router.group_weight_GD.grad is not None
    assert router.group_weight_GD.grad[idle].abs().max() > 0


def test_the_load_reaches_all_four_matrices_from_where_they_start() -> None:
    router = HierarchicalRouter(Hierarchical(branches=4), LayerDims(dim=6, num_experts=12))
    assert not any(p.any() for p in router.parameters())
    routing = router(torch.randn(60, 6))
    assert routing.smooth_load_E is not None
    for what in (routing.smooth_load_E.square().sum(), routing.gate_TK.square().sum()):
        gradients = torch.autograd.grad(what, list(router.parameters()), retain_graph=True)
        assert all(g.isfinite().all() and g.abs().max() > 1e-4 for g in gradients)


def test_from_zero_weights_every_expert_expects_the_same_load() -> None:
    router = HierarchicalRouter(Hierarchical(branches=4), LayerDims(dim=6, num_experts=12))
    routing = router(torch.randn(6000, 6))
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == pytest.approx([6000 * 4 / 12] * 12, rel=0.06)
    assert routing.load_E().tolist() == pytest.approx([6000 * 4 / 12] * 12, rel=0.1)


def test_with_everything_chosen_the_load_is_a_count() -> None:
    routing = drawn(E=8, top_groups=4)(torch.randn(5, 6), valid_T=torch.arange(5) < 3)
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == [3.0] * 8
    assert routing.load_E().tolist() == [3] * 8


def test_evaluation_is_deterministic_and_draws_nothing() -> None:
    router, x_TD = drawn().eval(), torch.randn(20, 6)
    before = torch.get_rng_state()
    routing = router(x_TD)
    assert torch.equal(torch.get_rng_state(), before)
    assert routing.smooth_load_E is None
    assert torch.equal(routing.gate_TK, router(x_TD).gate_TK)


def test_padding_with_nan_reaches_no_load_and_no_gradient() -> None:
    router, valid_T = drawn(), torch.arange(20) % 2 == 0
    routing = router(torch.randn(20, 6).masked_fill(~valid_T[:, None], NAN), valid_T=valid_T)
    assert routing.smooth_load_E is not None
    assert routing.load_E().sum() == 40
    assert routing.smooth_load_E.sum().item() == pytest.approx(40, rel=0.25)
    (routing.smooth_load_E.square().sum() + routing.gate_TK[valid_T].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in router.parameters())


def test_a_token_with_nan_keeps_to_itself() -> None:
    router, x_TD = drawn(), torch.randn(5, 6)
    torch.manual_seed(0)
    clean = router(x_TD)
    x_TD[2, 3] = NAN
    torch.manual_seed(0)
    routing = router(x_TD)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(routing.expert_TK[others], clean.expert_TK[others])
    assert torch.equal(routing.gate_TK[others], clean.gate_TK[others])
    assert routing.gate_TK[2].isnan().all()
    assert len(set(routing.expert_TK[2].tolist())) == 4


def test_no_tokens() -> None:
    routing = drawn()(torch.empty(0, 6), valid_T=torch.empty(0, dtype=torch.bool))
    assert routing.expert_TK.shape == routing.gate_TK.shape == (0, 4)
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == [0.0] * 12


@pytest.mark.parametrize("E", [256, 1024, 4096])
def test_the_papers_count_has_noise_weights_at_both_levels(E: int) -> None:
    with torch.device("meta"):
        router = HierarchicalRouter(Hierarchical(branches=16), LayerDims(dim=512, num_experts=E))
    gates = sum(p.numel() for p in router.parameters())
    assert gates == 2 * 512 * 16 + 2 * 512 * E
    lstms, experts = 2 * (4 * (512 + 512) * 512 + 4 * 512), E * 2 * 512 * 1024
    published = {256: 272.912, 1024: 1079.005, 4096: 4303.376}
    assert (lstms + experts + gates) / 1e6 == pytest.approx(published[E], abs=5e-4)


def test_a_selection_bias_is_refused() -> None:
    with pytest.raises(MoekitError, match="could move no load between groups; remove the balancer"):
        drawn()(torch.randn(3, 6), selection_bias_E=torch.zeros(12))
    assert not Hierarchical.takes_bias


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": 4, "top_groups": 5}, "top_groups=5 is more than branches=4"),
        ({"branches": 4, "top_groups": 1}, "top_groups=1 makes every gate of that level the constant 1"),
        ({"branches": 4, "top_k": 1}, "top_k=1 makes every gate .*: set top_k >= 2, or use noisy_topk"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hierarchical(**options)


def test_groups_that_the_experts_do_not_fill_are_refused() -> None:
    assert Hierarchical(branches=4, top_groups=2, top_k=3).active(64) == 6
    with pytest.raises(MoekitError, match="router hierarchical: branches=5 does not divide the 12 experts evenly"):
        drawn(branches=5)
    with pytest.raises(ValueError, match=r"top_k=2 is more than the 1 experts of a group \(4 experts in branches=4\)"):
        MoE(router=Hierarchical(branches=4), experts=ExpertSpec(count=4), dispatcher=DispatcherSpec())
