"""What holds for several dispatchers: the routing types they reject, and the precision of gates."""

from __future__ import annotations

import pytest
import torch

from moekit import build
from moekit.contracts import ExpertBank, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, Form
from moekit.testing.routings import some_routing
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.soft import Soft
from moekit_experts.glu import Glu

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
            r"forms token_choice, expert_choice\), but the router gave 'soft'; the dispatcher 'soft' takes",
        ),
        (Grouped(), "soft", r"but the router gave 'soft'; the dispatcher 'soft' takes that"),
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
