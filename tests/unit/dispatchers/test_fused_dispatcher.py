"""The fused dispatcher: what it saves for backward, its gradients, and what it hands to ``grouped``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from routings import best_of_random
from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims
from moekit.errors import MoekitError
from moekit.routing import TokenChoice
from moekit_dispatchers.fused import Fused, module, thread_pool
from moekit_dispatchers.fused.module import FusedDispatcher, why_not
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, H, E, K = 10, 8, 6, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)


def routing() -> TokenChoice:
    torch.manual_seed(0)
    random = best_of_random(T, E, K)
    return replace(random, gate_TK=random.gate_TK.requires_grad_())


def glu(**changes: Any) -> GluExperts:
    torch.manual_seed(1)
    return GluExperts(Glu(count=E, hidden=H, **changes), DIMS)


def kept(save: Any, x_TD: Tensor, experts: ExpertBank) -> int:
    """Elements saved for backward besides weights and tokens; a storage counts once."""
    known = {x_TD.data_ptr(), *(p.data_ptr() for p in experts.parameters())}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.data_ptr() not in known:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        FusedDispatcher(Fused(save=save), DIMS)(x_TD, routing(), experts)
    return sum(seen.values())


@pytest.mark.parametrize(("save", "width"), [("all", 3 * H), ("minimum", 2 * H), ("nothing", 0)])
def test_exactly_what_the_option_save_says_is_saved(save: str, width: int) -> None:
    """For each pair its gate and ``width`` numbers; nothing of the tokens' width but the tokens themselves."""
    x_TD = torch.randn(T, D, requires_grad=True)
    assert kept(save, x_TD, glu()) == T * K * (width + 1)


@pytest.mark.parametrize("wanted", ["x", "gate", "w_gate_up_EHD", "w_down_EOH"])
def test_a_gradient_computed_alone_is_that_computed_among_all(wanted: str) -> None:
    def gradient(alone: bool) -> Tensor:
        x_TD, experts, routed = torch.randn(T, D, generator=torch.Generator().manual_seed(2)), glu(), routing()
        leaves = {"x": x_TD, "gate": routed.gate_TK, **dict(experts.named_parameters())}
        for name, leaf in leaves.items():
            leaf.requires_grad_(not alone or name == wanted)
        FusedDispatcher(Fused(), DIMS)(x_TD, routed, experts).y_TO.square().sum().backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves.values())
        grad = leaves[wanted].grad
        assert grad is not None
        return grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=0)


def test_a_second_derivative_is_rejected() -> None:
    x_TD = torch.randn(T, D, requires_grad=True)
    y_TO = FusedDispatcher(Fused(), DIMS)(x_TD, routing(), glu()).y_TO
    with pytest.raises(MoekitError, match="'grouped' has derivatives of any order"):
        torch.autograd.grad(y_TO.sum(), x_TD, create_graph=True)


def test_weights_of_idle_experts_get_zero_gradients() -> None:
    experts, routed = glu(), routing()
    object.__setattr__(routed, "expert_TK", torch.tensor([[0, 3]]).expand(T, K))
    FusedDispatcher(Fused(), DIMS)(torch.randn(T, D), routed, experts).y_TO.sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[1:3].any()
        assert parameter.grad[[0, 3]].any()


def test_why_not_names_the_obstacle() -> None:
    form = glu().standard_form()
    assert form is not None
    x_TD = torch.randn(T, D)
    assert why_not(x_TD, form) == ""
    assert "tokens are torch.float64, weights torch.float32" in why_not(x_TD.double(), form)
    assert "fp32 or fp64" in why_not(x_TD.bfloat16(), form)
    assert "meta" in why_not(x_TD.to("meta"), form)
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not(x_TD, form) == "autocast is on"


@pytest.mark.parametrize("changes", [{"scale_bias": True}, {"dropout": 0.5}], ids=str)
def test_other_banks_are_handed_to_grouped(changes: dict[str, Any]) -> None:
    from moekit_dispatchers.grouped import Grouped
    from moekit_dispatchers.grouped.module import GroupedDispatcher

    x_TD, experts, outs = torch.randn(T, D), glu(**changes), []
    for dispatcher in (FusedDispatcher(Fused(), DIMS), GroupedDispatcher(Grouped(), DIMS)):
        torch.manual_seed(3)
        outs.append(dispatcher(x_TD, routing(), experts).y_TO)
    torch.testing.assert_close(*outs, rtol=0, atol=0)


def test_threads_are_used_from_a_minimum_of_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def shares(sizes: list[int], threads: int) -> list[thread_pool.Share]:
        requested.append(threads)
        return thread_pool.shares(sizes, 1)

    monkeypatch.setattr(module, "shares", shares)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    work = T * K * D * 2 * H  # of the first product, gate and up
    for worth in (work, work + 1):
        monkeypatch.setattr(thread_pool, "PARALLEL_FROM", worth)
        FusedDispatcher(Fused(), DIMS)(torch.randn(T, D), routing(), glu())
    assert requested == [2, 1]
