"""What holds for several routers: NaN in training, where noisy routers start, and which options they reject."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moekit import MoekitError, Router, build
from moekit.contracts import Init, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, ExpertSpec, MoE, RouterSpec
from moekit_routers.dense import Dense
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.sparse_mixer import SparseMixer
from moekit_routers.strict import Strict
from moekit_routers.topk import TopK

D, E = 6, 12
V3 = {"score": "sigmoid", "groups": 4, "top_groups": 2, "group_score": "top2_sum", "renormalize": True}
NOISY: list[RouterSpec] = [NoisyTopK(top_k=4), Hierarchical(branches=4)]


def router_of(spec: RouterSpec) -> Router:
    router: Router = build(spec, LayerDims(dim=D, num_experts=E))
    return router


def route(router: Router, x_TD: torch.Tensor, **given: torch.Tensor) -> TokenChoice:
    torch.manual_seed(0)
    routing = router(x_TD, **given)
    assert isinstance(routing, TokenChoice)
    return routing


@pytest.mark.parametrize(
    "spec",
    [
        TopK(top_k=3),
        TopK(top_k=3, score_over="chosen"),
        TopK(top_k=3, **V3),
        TopK(top_k=3, send_threshold=0.5),
        NoisyTopK(top_k=3, zero_init=False),
        SparseMixer(top_k=3),
        Hierarchical(branches=4, zero_init=False),
    ],
    ids=str,
)
def test_in_training_a_nan_token_gets_distinct_experts_and_nan_gates_and_changes_no_other(spec: RouterSpec) -> None:
    router, x_TD = router_of(spec), torch.randn(5, D)
    router.init_weights(Init(std=0.5))
    clean = route(router, x_TD)
    x_TD[2, 3] = torch.nan
    routing = route(router, x_TD)
    others = torch.tensor([0, 1, 3, 4])
    for name in ("expert_TK", "gate_TK", "sent_TK"):
        before, after = getattr(clean, name), getattr(routing, name)
        assert (before is None and after is None) or torch.equal(after[others], before[others])
    assert routing.gate_TK[2].isnan().all()
    assert len(set(routing.expert_TK[2].tolist())) == routing.expert_TK.shape[1]
    assert routing.sent_TK is None or routing.sent_TK[2].all()


# --- noisy routers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", NOISY, ids=str)
def test_from_zero_weights_noise_alone_chooses_and_every_expert_expects_the_same_load(spec: RouterSpec) -> None:
    router, x_TD = router_of(spec), torch.randn(6000, D)
    assert not any(p.any() for p in router.parameters())
    routing, other = route(router, x_TD), route(router, 3 * x_TD + 1)
    assert routing.smooth_load_E is not None and other.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == pytest.approx([6000 * 4 / E] * E, rel=0.06)
    assert routing.load_E().tolist() == pytest.approx([6000 * 4 / E] * E, rel=0.1)
    assert torch.equal(routing.smooth_load_E, other.smooth_load_E)


@pytest.mark.parametrize("spec", NOISY, ids=str)
def test_from_zero_weights_gates_and_smooth_load_train_every_matrix(spec: RouterSpec) -> None:
    router = router_of(spec)
    routing = route(router, torch.randn(60, D))
    assert routing.smooth_load_E is not None
    for objective in (routing.smooth_load_E.square().sum(), routing.gate_TK.square().sum()):
        gradients = torch.autograd.grad(objective, list(router.parameters()), retain_graph=True)
        assert all(g.isfinite().all() and g.abs().max() > 1e-4 for g in gradients)


@pytest.mark.parametrize("spec", [NoisyTopK(top_k=E), Hierarchical(branches=4, top_groups=4, top_k=3)], ids=str)
@pytest.mark.parametrize("T", [0, 5])
def test_with_every_expert_chosen_the_smooth_load_counts_valid_tokens(spec: RouterSpec, T: int) -> None:
    routing = route(router_of(spec), torch.randn(T, D), valid_T=torch.arange(T) < 3)
    assert routing.smooth_load_E is not None
    assert routing.expert_TK.shape == routing.gate_TK.shape == (T, E)
    assert routing.expert_TK.sort(1).values.tolist() == [list(range(E))] * T
    assert routing.smooth_load_E.tolist() == routing.load_E().tolist() == [min(T, 3)] * E


@pytest.mark.parametrize("spec", NOISY, ids=str)
def test_without_tokens_the_smooth_load_is_zero(spec: RouterSpec) -> None:
    routing = route(router_of(spec), torch.empty(0, D), valid_T=torch.empty(0, dtype=torch.bool))
    assert routing.smooth_load_E is not None
    assert routing.smooth_load_E.tolist() == [0.0] * E


# --- what is rejected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Dense(), "the dense router chooses no experts, so a selection bias has no effect"),
        (Hierarchical(branches=4), "a bias per expert moves no load between groups; remove the balancer"),
        (Strict(top_k=2), "takes no selection bias; remove the balancer"),
    ],
    ids=["dense", "hierarchical", "strict"],
)
def test_a_router_that_cannot_use_a_selection_bias_rejects_it(spec: RouterSpec, message: str) -> None:
    assert not spec.takes_bias
    with pytest.raises(MoekitError, match=message):
        router_of(spec)(torch.randn(3, D), selection_bias_E=torch.zeros(E))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            TopK,
            {"top_k": 1, "renormalize": True},
            "no gradient reaches the router: set renormalize=false, or top_k >= 2",
        ),
        (TopK, {"top_k": 1, "score": "sigmoid", "renormalize": True}, "makes every gate the constant 1"),
        (TopK, {"top_k": 1, "score_over": "chosen"}, "set score_over=all or score=sigmoid, or top_k >= 2"),
        (TopK, {"top_k": 2, "groups": 4}, "groups=4 without top_groups"),
        (TopK, {"top_k": 2, "groups": 4, "top_groups": 5}, "top_groups=5 is more than groups=4"),
        (TopK, {"top_k": 0}, "top_k=0 is out of range"),
        (TopK, {"top_k": 2, "input_jitter": 1.0}, "input_jitter=1.0 is out of range"),
        (TopK, {"top_k": 1, "send_threshold": 0.5}, r"send_threshold=0\.5 is for choices after the first, and top_k=1"),
        (TopK, {"top_k": 2, "send_threshold": 0.0}, r"send_threshold=0\.0 is out of range"),
        (TopK, {"top_k": 2, "send_threshold": 1.5}, r"send_threshold=1\.5 is out of range"),
        (NoisyTopK, {"top_k": 1}, "no gradient reaches the router: set top_k >= 2"),
        (NoisyTopK, {"top_k": 2, "noise_epsilon": -1.0}, r"noise_epsilon=-1\.0 is out of range"),
        (Hierarchical, {"branches": 4, "top_groups": 5}, "top_groups=5 is more than branches=4"),
        (Hierarchical, {"branches": 4, "top_groups": 1}, "top_groups=1 makes every gate of that level the constant 1"),
        (Hierarchical, {"branches": 4, "top_k": 1}, "top_k=1 makes every gate .*: set top_k >= 2, or use noisy_topk"),
    ],
)
def test_inconsistent_options_are_rejected(spec: type[RouterSpec], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TopK(top_k=13), "router topk: top_k=13 is more than the 12 experts there are: lower top_k, or raise count"),
        (
            TopK(top_k=2, groups=5, top_groups=2),
            "topk: groups=5 does not divide the 12 experts evenly: choose a divisor",
        ),
        (
            TopK(top_k=7, groups=2, top_groups=1),
            "topk: top_k=7 is more than the 6 experts that top_groups=1 of groups=2 hold: lower top_k, or raise top_",
        ),
        (
            TopK(top_k=2, groups=12, top_groups=2, group_score="top2_sum"),
            "topk: group_score=top2_sum needs two experts or more in a group; groups=12 of 12 experts hold 1",
        ),
        (SparseMixer(top_k=13), "router sparse_mixer: top_k=13 is more than the 12 experts there are: lower top_k"),
        (NoisyTopK(top_k=13), "router noisy_topk: top_k=13 is more than the 12 experts there are: lower top_k"),
        (Strict(top_k=13), "router strict: top_k=13 is more than the 12 experts there are: lower top_k"),
        (Hierarchical(branches=5), "router hierarchical: branches=5 does not divide the 12 experts evenly"),
        (
            Hierarchical(branches=12),
            r"router hierarchical: top_k=2 is more than the 1 experts of a group \(12 experts in branches=12\)",
        ),
    ],
)
def test_a_choice_that_the_experts_cannot_serve_is_rejected(spec: RouterSpec, message: str) -> None:
    with pytest.raises(MoekitError, match=message):
        router_of(spec)
    with pytest.raises(ValueError, match=message.partition(": ")[2]):  # and already when a layer's spec is composed
        MoE(router=spec, experts=ExpertSpec(count=E), dispatcher=DispatcherSpec())


@pytest.mark.parametrize(
    ("spec", "active"),
    [
        (Dense(), 64),
        (TopK(top_k=3), 3),
        (NoisyTopK(top_k=4), 4),
        (SparseMixer(top_k=3), 3),
        (Hierarchical(branches=4, top_k=3), 6),
        (Strict(top_k=2), 2),
    ],
    ids=str,
)
def test_a_spec_says_how_many_experts_a_token_runs_through(spec: RouterSpec, active: int) -> None:
    assert spec.active(64) == active
