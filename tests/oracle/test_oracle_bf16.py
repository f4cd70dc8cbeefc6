"""Every dispatcher in bf16, and under autocast, is within a stated bound of the exact result, gradients too.

The bound is derived, not fitted. u = 2^-8 is the largest relative error of one rounding to bf16. Between x and y a
number is rounded at most ``R = 9 + K`` times: x, the two matrices and the gate (4), the first product, the activation,
the product of the halves, the second product (4), K partial sums, the output (1). A gradient has been rounded twice as
often. Errors grow with the sizes of the terms of a sum, not with the sum. So they are measured relative to a majorant:
the same expression with the absolute value of every weight, token and gate, and with the identity instead of silu,
which bounds it. silu's curvature (at most 1/2) and slope (at most 1.1) multiply an error of its argument a by at most
1 + |a|.

That bound holds for every element in the worst case, and is wide. The error of a whole tensor is smaller. One rounding
is as likely up as down, and its mean square is at most u^2 / 3 (uniform over half a unit in the last place, for the
smallest significand). The variances of R successive roundings add up, as do those of the terms of a sum, whose squares
add up likewise because signs are mixed here. So the Frobenius norm of the error is at most about sqrt(R / 3) * u of
that of the exact result: since significands are spread over [1, 2), the mean square is about half the maximum. Measured
over six seeds: at most 0.89 of the bound, in the output.
"""

from __future__ import annotations

import pytest
import torch
from devices import on_each_device
from torch import Tensor

from moekit.contracts import Dispatcher, LayerDims
from moekit.routing import TokenChoice
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.capacity.module import CapacityDispatcher
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher
from moekit_dispatchers.loop import Loop
from moekit_dispatchers.loop.module import LoopDispatcher
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

T, D, H, E, U = 61, 24, 16, 6, 2.0**-8
DIMS = LayerDims(dim=D, num_experts=E)
LOOP = LoopDispatcher(Loop(), DIMS)
DISPATCHERS: dict[str, Dispatcher] = {
    "loop": LOOP,
    "grouped": GroupedDispatcher(Grouped(), DIMS),
    "capacity": CapacityDispatcher(Capacity(factor=float(E)), DIMS),
    "fused": FusedDispatcher(Fused(), DIMS),
}


def values(x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, bank: GluExperts, dispatcher: Dispatcher) -> list[Tensor]:
    """The output and every gradient, for an upstream gradient of ones and minus ones."""
    zero_TE = torch.zeros(T, E)
    routing = TokenChoice(logits_TE=zero_TE, scores_TE=zero_TE, expert_TK=expert_TK, gate_TK=gate_TK)
    y_TO = dispatcher(x_TD, routing, bank).y_TO
    return [y_TO.detach(), *torch.autograd.grad(y_TO, [x_TD, gate_TK, *bank.parameters()], signs(y_TO))]


def signs(y_TO: Tensor) -> Tensor:
    return (torch.arange(y_TO.numel(), device=y_TO.device).reshape(y_TO.shape) % 3 - 1).to(y_TO.dtype)


def majorant(x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, bank: GluExperts) -> tuple[list[Tensor], float]:
    """Output and gradients without any cancellation, and the largest possible argument of silu."""
    sizes = [t.detach().double().abs().requires_grad_() for t in (x_TD, gate_TK, *bank.parameters())]
    x, gate, w_in_EHD, w_out_EOH = sizes
    in_TKH = torch.einsum("td,tkhd->tkh", x, w_in_EHD[expert_TK])
    a_TKH, up_TKH = in_TKH.chunk(2, -1)
    y_TO = torch.einsum("tk,tkh,tkoh->to", gate, a_TKH * up_TKH, w_out_EOH[expert_TK])
    return [y_TO.detach(), *torch.autograd.grad(y_TO, sizes, signs(y_TO).abs())], float(a_TKH.detach().max())


def case(K: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, GluExperts]:
    """Tokens, gates, chosen experts, and the bank."""
    bank = GluExperts(Glu(count=E, hidden=H), DIMS).to(dtype)
    gate_TK = torch.rand(T, K).requires_grad_()
    return torch.randn(T, D).to(dtype).requires_grad_(), gate_TK, torch.rand(T, E).topk(K).indices, bank


def exactly(x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor, bank: GluExperts) -> list[Tensor]:
    """The same by the loop dispatcher, in fp64."""
    exact_bank = GluExperts(Glu(count=E, hidden=H), DIMS).double()
    exact_bank.load_state_dict(bank.state_dict())
    x64_TD, gate64_TK = (t.detach().double().requires_grad_() for t in (x_TD, gate_TK))
    return values(x64_TD, gate64_TK, expert_TK, exact_bank, LOOP)


def spread(ours: Tensor, right: Tensor, roundings: int) -> float:
    """The norm of the error, divided by the bound for this number of roundings."""
    return float((ours.double() - right).norm() / right.norm()) / ((roundings / 3) ** 0.5 * U)


with_and_without_autocast = pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])


@pytest.mark.parametrize("K", [1, 2, E])
@with_and_without_autocast
@pytest.mark.parametrize("name", DISPATCHERS)
@on_each_device
def test_bf16_is_within_its_bounds(device: str, name: str, autocast: bool, K: int) -> None:
    made = case(K, torch.float32 if autocast else torch.bfloat16)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found = values(*made, DISPATCHERS[name])
    exact = exactly(*made)
    bounds, largest = majorant(*made)
    for i, (ours, right, size) in enumerate(zip(found, exact, bounds, strict=True)):
        roundings = (9 + K) * (1 if i == 0 else 2)
        error = (ours.double() - right).abs()
        assert bool((error <= roundings * U * (1 + largest) * size).all()), f"tensor {i}: {(error / size).max()}"
        assert spread(ours, right, roundings) <= 1, f"tensor {i}"
    leaves = (made[0], made[1], *made[3].parameters())
    assert [t.dtype for t in found] == [torch.bfloat16, *(leaf.dtype for leaf in leaves)]
    assert bool((found[0].double() - exact[0]).abs().max() > 0), "nothing was rounded, so this was not bf16"


@pytest.mark.parametrize("K", [1, 2, E])
@with_and_without_autocast
@pytest.mark.parametrize("name", DISPATCHERS)
def test_an_expert_with_an_error_of_a_twentieth_exceeds_the_bound(name: str, autocast: bool, K: int) -> None:
    """The bound on the norm detects it, though the one on each element does not."""
    made = case(K, torch.float32 if autocast else torch.bfloat16)
    (exact_TO, *_), (bound_TO, *_) = exactly(*made), majorant(*made)[0]
    _, _, expert_TK, bank = made
    busiest = int(expert_TK.flatten().bincount().argmax())
    with torch.no_grad():
        bank.get_parameter("w_down_EOH")[busiest] *= 1.05
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y_TO = values(*made, DISPATCHERS[name])[0]
    assert spread(y_TO, exact_TO, 9 + K) > 1
    assert bool(((y_TO.double() - exact_TO).abs() <= (9 + K) * U * 2 * bound_TO).all())
