"""What holds for several dispatchers: routing types they reject, the precision of gates, and compilation."""

from __future__ import annotations

import pytest
import torch

from moekit import build
from moekit.contracts import ExpertBank, LayerDims
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice
from moekit.spec import component_spec
from moekit.spec.kinds import DispatcherSpec, Form, MoE
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.soft import Soft
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK
from moekit_testing.fixtures.routings import some_routing

D = 4


def token_choice(expert_TK: list[list[int]], gates: list[list[float]], E: int) -> TokenChoice:
    zeros_TE, gate_TK = torch.zeros(len(expert_TK), E), torch.tensor(gates, requires_grad=True)
    return TokenChoice(logits_TE=zeros_TE, scores_TE=zeros_TE, expert_TK=torch.tensor(expert_TK), gate_TK=gate_TK)


@pytest.mark.parametrize(
    ("spec", "form", "message"),
    [
        (
            Loop(),
            "soft",
            r"forms token_choice, expert_choice\), but the router gave 'soft'; choose a dispatcher that takes",
        ),
        (Grouped(), "soft", r"but the router gave 'soft'; choose a dispatcher that takes that form"),
        (Capacity(), "expert_choice", r"'capacity' takes routings by token choice .* gave 'expert_choice'"),
        (
            DeviceCapacity(groups=2, inner=Grouped()),
            "expert_choice",
            r"'device_capacity' takes routings by token choice .* gave 'expert_choice'",
        ),
        (Soft(), "token_choice", r"soft routings, .* gave 'token_choice'; the dispatchers 'grouped' and 'loop' take"),
    ],
    ids=["loop", "grouped", "capacity", "device_capacity", "soft"],
)
def test_a_routing_of_another_type_is_rejected(spec: DispatcherSpec, form: Form, message: str) -> None:
    dims = LayerDims(dim=D, num_experts=4)
    routing = some_routing(form, 6, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        build(spec, dims)(torch.zeros(6, D), routing, build(Glu(count=4, hidden=3), dims))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("spec", [Loop(), Grouped(), Capacity()], ids=str)
def test_gates_multiply_in_fp32_where_experts_answer_in_bf16(spec: DispatcherSpec, grad: bool) -> None:
    """Gates 1 + 2^-12 and -1 on experts that agree: their sum is 0 in bf16. Without a gradient pairs may be few."""
    E = 16
    routing = token_choice([[0, 1]] * 4, [[1 + 2**-12, -1.0]] * 4, E)
    bank = ExpertBank.from_modules([torch.nn.Identity()] * E, D)
    with torch.set_grad_enabled(grad):
        y_TD = build(spec, LayerDims(dim=D, num_experts=E)).eval()(torch.ones(4, D).bfloat16(), routing, bank).y_TO
    kept_T = y_TD.any(1)
    assert kept_T[0] and (kept_T.all() or not spec.dropless)
    torch.testing.assert_close(y_TD[kept_T], torch.full((int(kept_T.sum()), D), 2.0**-12).bfloat16())


@pytest.mark.parametrize("spec", [Grouped(), Capacity()], ids=str)
def test_under_autocast_outputs_are_bf16_and_gradients_of_gates_fp32(spec: DispatcherSpec) -> None:
    dims, routing = LayerDims(dim=D, num_experts=2), token_choice([[0], [1], [0]], [[0.5], [1.0], [0.7]], 2)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD = build(spec, dims)(torch.randn(3, D), routing, build(Glu(count=2, hidden=5), dims)).y_TO
    assert y_TD.dtype == torch.bfloat16
    assert torch.autograd.grad(y_TD.sum(), routing.gate_TK)[0].dtype == torch.float32


@pytest.mark.parametrize("use", ["grouped", "textbook", "fused", "auto", "loop", "capacity"])
def test_autocast_leaves_fp64_as_it_is(use: str) -> None:
    """As torch's own operations do."""
    dims = LayerDims(dim=D, num_experts=2)
    routing = token_choice([[0], [1], [0]], [[0.5], [1.0], [0.7]], 2)
    dispatcher, bank = build(component_spec("dispatcher", use), dims), build(Glu(count=2, hidden=5), dims).double()
    x_TD = torch.randn(3, D, dtype=torch.float64)
    expected_TD = dispatcher(x_TD, routing, bank).y_TO
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dispatcher(x_TD, routing, bank).y_TO, expected_TD)


def assert_compiles(spec: DispatcherSpec, backend: str, dtype: torch.dtype, *, padded: bool = True) -> None:
    """A layer compiles into one graph with the eager results, and again for another length."""
    experts, shared = Glu(count=4, hidden=6), Glu(hidden=3)
    layer = MoELayer.from_spec(MoE(router=TopK(top_k=2), experts=experts, shared=shared, dispatcher=spec), D).to(dtype)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for length in (5, 8):  # the second is traced with lengths as symbols
        x_BSD = torch.randn(5, length, D, dtype=dtype, requires_grad=True)
        valid_BS = torch.arange(5 * length).reshape(5, length) % 5 != 1 if padded else None
        leaves, results = [x_BSD, *layer.parameters()], []
        for run in (layer, compiled):
            torch.manual_seed(3)
            y_BSD, report = run(x_BSD, valid=valid_BS)
            assert spec.dropless == (int(report.dropped) == 0)
            gradients = torch.autograd.grad(y_BSD.square().sum(), leaves)
            results.append((y_BSD, report.load_E, report.dropped, *gradients))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (Grouped(), torch.float32),
        (Capacity(factor=0.75, order="priority", per="sequence", rounding="round"), torch.float64),
        (DeviceCapacity(groups=2, factor=0.7, exempt=0.3, inner=Grouped()), torch.float32),
    ],
    ids=["grouped", "capacity", "device_capacity"],
)
def test_a_layer_compiles_into_one_graph_of_any_length(spec: DispatcherSpec, dtype: torch.dtype) -> None:
    assert_compiles(spec, "aot_eager", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_a_layer_compiles_into_one_graph_with_inductor(padded: bool) -> None:
    assert_compiles(Grouped(), "inductor", torch.float32, padded=padded)
