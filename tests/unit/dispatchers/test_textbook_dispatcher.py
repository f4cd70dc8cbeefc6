"""The textbook dispatcher: its one function is the layer of ``loop``, and what it does not take goes to autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from routings import best_of_random
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.errors import MoekitError
from moekit.routing import TokenChoice
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_dispatchers.textbook import Textbook, module
from moekit_dispatchers.textbook import whole as whole_module
from moekit_dispatchers.textbook.module import TextbookDispatcher
from moekit_experts.ffn import Ffn
from moekit_experts.ffn.module import FfnExperts
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

D, H, O, E = 8, 12, 4, 5  # noqa: E741
DIMS = LayerDims(dim=D, num_experts=E, out_dim=O)
LOOP, TEXTBOOK = LoopDispatcher(Loop(), DIMS), TextbookDispatcher(Textbook(), DIMS)


def routing(T: int, K: int, idle: int = 0) -> TokenChoice:
    torch.manual_seed(T + K)
    random = best_of_random(T, E - idle, K)
    scores_TE = torch.nn.functional.pad(random.scores_TE, (0, idle))
    return replace(random, logits_TE=scores_TE, scores_TE=scores_TE, gate_TK=random.gate_TK.requires_grad_())


def bank(kind: str = "glu", activation: Any = "silu") -> ExpertBank:
    torch.manual_seed(1)
    if kind == "ffn":
        return FfnExperts(Ffn(count=E, hidden=H, activation=activation), DIMS)
    return GluExperts(Glu(count=E, hidden=H, activation=activation), DIMS)


def run(dispatcher: Dispatcher, routed: TokenChoice, experts: ExpertBank, x_TD: Tensor) -> list[Tensor]:
    """The output, and gradients of tokens, gates and weights."""
    leaves = [x_TD, routed.gate_TK, *experts.parameters()]
    y_TO = dispatcher(x_TD, routed, experts).y_TO
    upstream = torch.linspace(-1, 1, y_TO.numel()).view_as(y_TO)
    again = torch.autograd.grad(y_TO, leaves, upstream, retain_graph=True)
    found = torch.autograd.grad(y_TO, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))  # nothing saved was overwritten
    return [y_TO.detach(), *found]


@pytest.fixture
def wholes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs of each call of the one function."""
    calls: list[int] = []

    def counted(x_TD: Tensor, gate_TK: Tensor, *rest: Any) -> Tensor:
        calls.append(gate_TK.numel())
        return whole_module.whole(x_TD, gate_TK, *rest)

    monkeypatch.setattr(module, "whole", counted)
    return calls


@pytest.mark.parametrize("kind", ["glu", "ffn"])
@pytest.mark.parametrize(
    ("T", "K", "idle"), [(1, 1, 0), (9, 1, 3), (9, 3, 2), (7, 5, 0), (600, 2, 1)], ids=lambda n: f"{n}"
)
def test_the_one_function_is_the_layer_of_loop(kind: str, T: int, K: int, idle: int, wholes: list[int]) -> None:
    routed, x_TD = routing(T, K, idle), torch.randn(T, 2 * D)[:, ::2].requires_grad_()
    activations = ["silu", "gelu", "relu", *(["sigmoid"] if kind == "glu" else [])]
    for activation in activations if T == 9 else activations[:1]:
        experts = bank(kind, activation)
        found = run(TEXTBOOK, routed, experts, x_TD)
        for a, b in zip(found, run(LOOP, routed, experts, x_TD), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(TEXTBOOK(x_TD, routed, experts).y_TO, found[0], rtol=0, atol=0)
    assert set(wholes) == {T * K}


@pytest.mark.parametrize("wanted", range(4))
def test_a_gradient_computed_alone_is_that_computed_among_all(wanted: int) -> None:
    def gradient(alone: bool) -> Tensor:
        routed, experts, x_TD = routing(9, 2), bank(), torch.randn(9, D, generator=torch.Generator().manual_seed(2))
        leaves = [x_TD, routed.gate_TK, *experts.parameters()]
        for n, leaf in enumerate(leaves):
            leaf.requires_grad_(not alone or n == wanted)
        TEXTBOOK(x_TD, routed, experts).y_TO.square().sum().backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves)
        grad = leaves[wanted].grad
        assert grad is not None
        return grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=0, atol=0)


def test_a_second_derivative_is_rejected() -> None:
    x_TD = torch.randn(9, D, requires_grad=True)
    y_TO = TEXTBOOK(x_TD, routing(9, 2), bank()).y_TO
    with pytest.raises(MoekitError, match=r"'textbook' is differentiable once.*'grouped' has derivatives of any order"):
        torch.autograd.grad(y_TO.sum(), x_TD, create_graph=True)


def test_what_the_one_function_does_not_take_is_left_to_autograd(wholes: list[int]) -> None:
    """Padding of NaN, unsent pairs, odd widths, other dtypes, a transform, and a mode that counts."""
    experts, x_TD, routed = bank(), torch.randn(9, D), routing(9, 2)
    padded = replace(routed, valid_T=torch.arange(9) < 6)
    some = replace(routed, sent_TK=torch.arange(18).view(9, 2) % 3 > 0)
    odd = GluExperts(Glu(count=E, hidden=H - 1), DIMS)
    for choice, rows, given in (
        (padded, x_TD.where(padded.valid_T[:, None], torch.nan), experts),  # type: ignore[index]
        (some, x_TD, experts),
        (routed, x_TD, odd),
        (routed, x_TD.double(), bank().double()),
    ):
        expected = run(LOOP, choice, given, rows.detach().clone().requires_grad_())
        for a, b in zip(run(TEXTBOOK, choice, given, rows.clone().requires_grad_()), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with FlopCounterMode(display=False):
        TEXTBOOK(x_TD, routed, experts)
    torch.func.grad(lambda x: TEXTBOOK(x, routed, experts).y_TO.sum())(x_TD)
    assert wholes == []
