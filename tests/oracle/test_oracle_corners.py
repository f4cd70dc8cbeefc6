"""Edge cases of every token-choice dispatcher: sizes, memory layouts, frozen parameters, second derivatives.

The reference is autograd in fp64 on one product over (token, choice), without sorting or groups. ``triton_cases.py``
does the same for the kernels of ``triton``; here, on a CPU, that dispatcher is ``grouped``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from devices import on_each_device
from torch import Tensor, nn
from torch.autograd import gradgradcheck

from moekit.contracts import Dispatcher, LayerDims
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, MoE
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.auto import module as auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.triton import Triton
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_routers.topk import TopK

D, O, H, E, F64 = 6, 7, 5, 4, torch.float64  # noqa: E741
ONCE: dict[str, DispatcherSpec] = {
    "fused saving all": Fused(save="all"),
    "fused": Fused(),
    "fused saving nothing": Fused(save="nothing"),
    "auto that chooses fused": Auto(),
}
"""Differentiable once."""

TWICE: dict[str, DispatcherSpec] = {
    "loop": Loop(),
    "grouped": Grouped(),
    "triton": Triton(),
    "auto that chooses grouped": Auto(),
    "capacity": Capacity(factor=float(E)),
    "device_capacity": DeviceCapacity(groups=2, factor=2.0, exempt=0.0, inner=Grouped()),
}
"""With derivatives of any order. None of them drops: capacities are large enough for any load."""

ALL = ONCE | TWICE
Layout = Callable[[Tensor], Tensor]


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dispatcher(name: str, monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    monkeypatch.setattr(auto, "FUSED_FROM", 0 if "fused" in name else 1 << 60)
    built: Dispatcher = build(ALL[name], LayerDims(dim=D, num_experts=E, out_dim=O))
    return built


class Leaves(NamedTuple):
    """The inputs and weights of a layer's experts."""

    x_TD: Tensor
    gate_TK: Tensor
    w_in_EHD: Tensor
    w_out_EOH: Tensor

    def train(self, *trained: bool) -> Leaves:
        """Copies with the same memory layout, which require gradients or not."""
        return Leaves(*(t.detach().clone().requires_grad_(on) for t, on in zip(self, trained, strict=True)))


def leaves(T: int, K: int) -> Leaves:
    shapes = ((T, D), (T, K), (E, 2 * H, D), (E, O, H))
    return Leaves(*(torch.randn(shape, dtype=F64) for shape in shapes)).train(True, True, True, True)


def as_it_is(t: Tensor) -> Tensor:
    return t


def dispatched(dispatcher: Dispatcher, given: Leaves, expert_TK: Tensor, lay: Layout = as_it_is) -> Tensor:
    """``y_TO``, computed from views of the leaves that have the memory layout of ``lay``."""
    x_TD, gate_TK, w_in_EHD, w_out_EOH = (lay(t) for t in given)
    zeros_TE = torch.zeros(len(expert_TK), E, dtype=F64)
    routing = TokenChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, expert_TK=expert_TK, gate_TK=gate_TK)
    experts = GluExperts(Glu(count=E, hidden=H), LayerDims(dim=D, num_experts=E, out_dim=O)).double()
    for own, t in zip([name for name, _ in experts.named_parameters()], (w_in_EHD, w_out_EOH), strict=True):
        delattr(experts, own)
        setattr(experts, own, t)  # a view instead of a parameter, so that the gradient reaches the leaf
    out = dispatcher(x_TD, routing, experts)
    assert int(out.dropped) == 0
    return out.y_TO


def reference(given: Leaves, expert_TK: Tensor) -> Tensor:
    """``y_t = sum over k of gate · down(silu(gate x) · up x)``, with gathered weights for each choice."""
    h_TKH = torch.einsum("td,tkhd->tkh", given.x_TD, given.w_in_EHD[expert_TK])
    a_TKH, up_TKH = h_TKH.chunk(2, -1)
    acted_TKH = nn.functional.silu(a_TKH) * up_TKH
    return torch.einsum("tk,tkh,tkoh->to", given.gate_TK, acted_TKH, given.w_out_EOH[expert_TK])


def uneven(y_TO: Tensor) -> Tensor:
    return torch.linspace(-1, 2, y_TO.numel(), dtype=F64).cos().reshape(y_TO.shape)


def assert_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def any_experts(T: int, K: int, among: int = E) -> Tensor:
    return torch.rand(T, among).argsort(1)[:, :K]


CHOICES: dict[str, Callable[[], Tensor]] = {
    "no token": lambda: any_experts(0, 2),
    "one token": lambda: any_experts(1, 2),
    "an odd number": lambda: any_experts(13, 3),
    "one choice": lambda: any_experts(9, 1),
    "every expert": lambda: any_experts(9, E),
    "an idle expert": lambda: any_experts(9, 2, among=E - 1),
    "all to the first": lambda: torch.zeros(9, 1, dtype=torch.int64),
    "all to the last": lambda: torch.full((9, 1), E - 1),
}


@on_each_device
@pytest.mark.parametrize("choice", CHOICES)
def test_any_number_of_tokens_and_choices(dispatcher: Dispatcher, choice: str) -> None:
    expert_TK = CHOICES[choice]()
    given = leaves(*expert_TK.shape)
    y_TO, expected_TO = dispatched(dispatcher, given, expert_TK), reference(given, expert_TK)
    assert_equal(y_TO, expected_TO)
    assert_equal(*(torch.autograd.grad(y, given, uneven(y)) for y in (y_TO, expected_TO)))


LAYOUTS: dict[str, Layout] = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other column": lambda t: torch.stack([t, t.new_full(t.shape, torch.nan)], -1).flatten(-2)[..., ::2],
    "every other row": lambda t: torch.stack([t, t.new_full(t.shape, torch.nan)], -2).flatten(-3, -2)[..., ::2, :],
    "from the middle": lambda t: torch.cat([t.new_full((1, *t.shape[1:]), torch.nan), t])[1:],
}
"""Views of the same numbers, with NaN in memory between them."""


@on_each_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(dispatcher: Dispatcher, layout: str) -> None:
    """Of tokens, gates, both weights, and the upstream gradient."""
    lay, expert_TK = LAYOUTS[layout], any_experts(11, 2)
    given = leaves(11, 2)
    if layout != "from the middle":
        assert not any(lay(t).is_contiguous() for t in given)
    y_TO, expected_TO = dispatched(dispatcher, given, expert_TK, lay), reference(given, expert_TK)
    assert_equal(y_TO, expected_TO)
    found = torch.autograd.grad(y_TO, given, lay(uneven(y_TO)))
    assert_equal(found, torch.autograd.grad(expected_TO, given, uneven(y_TO)))


def test_an_upstream_gradient_with_strides_of_zero(dispatcher: Dispatcher) -> None:
    """As that of a sum."""
    given, expert_TK = leaves(11, 2), any_experts(11, 2)
    assert_equal(
        *(
            torch.autograd.grad(y.sum(), given)
            for y in (dispatched(dispatcher, given, expert_TK), reference(given, expert_TK))
        )
    )


def test_every_combination_of_frozen_tensors(dispatcher: Dispatcher) -> None:
    """Each gradient is the same whichever others are computed; without any, there is no graph."""
    start, expert_TK = leaves(9, 2), any_experts(9, 2, among=E - 1)
    expected_TO = reference(start, expert_TK)
    right = torch.autograd.grad(expected_TO, start, uneven(expected_TO))
    for trained in product([False, True], repeat=4):
        given = start.train(*trained)
        y_TO = dispatched(dispatcher, given, expert_TK)
        assert_equal(y_TO, expected_TO)
        assert y_TO.requires_grad == any(trained)
        if any(trained):
            y_TO.backward(uneven(y_TO))  # type: ignore[no-untyped-call]
        for t, on, expected in zip(given, trained, right, strict=True):
            assert (t.grad is not None) == on, trained
            if t.grad is not None:
                assert_equal(t.grad, expected)


@pytest.mark.parametrize("frozen", ["router", "experts"])
def test_a_layer_with_a_frozen_part(name: str, dispatcher: Dispatcher, frozen: str) -> None:
    """The other part and the tokens get the same gradients as without freezing."""
    spec = MoE(router=TopK(top_k=2), experts=Glu(count=E, hidden=H), dispatcher=ALL[name])
    layer = MoELayer.from_spec(spec, dim=D).double()
    x_TD = torch.randn(9, D, dtype=F64, requires_grad=True)
    named = {"x": x_TD, **dict(layer.named_parameters())}
    y_TD = layer(x_TD)[0]
    right = dict(zip(named, torch.autograd.grad(y_TD, list(named.values()), uneven(y_TD)), strict=True))
    layer.get_submodule(frozen).requires_grad_(False)
    left = {key: t for key, t in named.items() if t.requires_grad}
    assert 1 < len(left) < len(named)
    y_TD = layer(x_TD)[0]
    found = torch.autograd.grad(y_TD, list(left.values()), uneven(y_TD))
    assert_equal(dict(zip(left, found, strict=True)), {key: right[key] for key in left})


@pytest.mark.parametrize("name", TWICE, indirect=True)
def test_second_derivatives_are_right(dispatcher: Dispatcher) -> None:
    given, expert_TK = leaves(5, 2), any_experts(5, 2, among=E - 1)
    assert gradgradcheck(lambda *ts: dispatched(dispatcher, Leaves(*ts), expert_TK), given, fast_mode=True)
    y_TO, expected_TO = dispatched(dispatcher, given, expert_TK), reference(given, expert_TK)
    both = []
    for y in (y_TO, expected_TO):
        first = torch.autograd.grad(y, given, uneven(y), create_graph=True)
        penalty = sum(((g.square() * uneven(g)).sum() for g in first), torch.zeros((), dtype=F64))
        both.append(torch.autograd.grad(penalty, given))
    assert_equal(*both)


@pytest.mark.parametrize("name", ONCE, indirect=True)
@pytest.mark.parametrize("at", range(4))
def test_second_derivatives_of_fused_raise(dispatcher: Dispatcher, at: int) -> None:
    """Whichever gradient is differentiated again."""
    given, expert_TK = leaves(5, 2), any_experts(5, 2)
    y_TO = dispatched(dispatcher, given, expert_TK)
    with pytest.raises(MoekitError, match=r"'fused' is differentiable once.*'grouped' has derivatives of any order"):
        torch.autograd.grad(y_TO.square().sum(), given[at], create_graph=True)
