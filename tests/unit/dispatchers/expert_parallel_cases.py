"""Tokens, routings and experts for ``expert_parallel_run``, and the comparison of ranks with one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import Dispatched, ExpertBank, LayerDims
from moekit.parallel.mesh import REPLICA, expert_mesh
from moekit.registry import build
from moekit.routing import Routing, TokenChoice, gates_of
from moekit.spec.kinds import DispatcherSpec, Form
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_experts.ffn import Ffn
from moekit_testing.fixtures.routings import some_routing, with_gates

E, D, O = 8, 6, 5  # noqa: E741
DIMS = LayerDims(dim=D, num_experts=E, out_dim=O)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-2}
TOKENS = (9, 4, 0, 6)  # of each rank

DROPLESS: list[DispatcherSpec] = [Loop(), Grouped(), Auto(), Fused()]
DROPPING: list[DispatcherSpec] = [
    Capacity(factor=0.8),
    Capacity(factor=0.6, order="choice"),
    Capacity(factor=0.6, order="priority"),
    Capacity(factor=0.6, order="affinity"),
    DeviceCapacity(groups=4, factor=0.7, exempt=0.0, inner=Grouped()),
    DeviceCapacity(groups=2, factor=0.7, exempt=0.5, inner=Capacity(factor=0.9)),
]


def rank() -> int:
    return dist.get_rank()


def world() -> int:
    return dist.get_world_size()


def close(found: Tensor, expected: Tensor, what: str) -> None:
    tolerance = TOLERANCE[expected.dtype]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, msg=lambda said: f"rank {rank()}, {what}: {said}"
    )


def bank_of(held: range | None, dtype: torch.dtype) -> ExpertBank:
    """The experts of one rank, or all of them."""
    torch.manual_seed(1)
    whole: ExpertBank = build(Ffn(count=E, hidden=7, activation="gelu", bias=True), DIMS).to(dtype)
    with torch.no_grad():
        for p in whole.parameters():
            p.copy_(torch.randn_like(p) / 2)
    if held is None:
        return whole
    dims = replace(DIMS, num_experts=len(held))
    part: ExpertBank = build(Ffn(count=len(held), hidden=7, activation="gelu", bias=True), dims).to(dtype)
    part.load_state_dict({name: p[held.start : held.stop] for name, p in whole.state_dict().items()})
    return part


def case_of(
    r: int, form: Form, K: int, dtype: torch.dtype, *, tokens: Sequence[int], skewed: bool, padded: bool
) -> tuple[Tensor, Routing]:
    """Tokens and their routing on rank r; every process computes the same."""
    torch.manual_seed(50 + r)
    T = tokens[r]
    valid_T = torch.rand(T) < 0.7 if padded else None
    wide = torch.promote_types(dtype, torch.float32)
    routing = some_routing(form, T, E, K=K, seed=r, dtype=wide, valid_T=valid_T)
    if skewed and isinstance(routing, TokenChoice):
        routing = replace(routing, expert_TK=torch.arange(K).expand(T, K).contiguous())
    if isinstance(routing, TokenChoice):
        gate_TK = routing.gate_TK.clone()
        sent_TK = torch.rand(T, K) < 0.8 if padded else None
        if padded:
            gate_TK[~sent_TK] = torch.nan
            gate_TK[~valid_T] = torch.nan
        routing = replace(routing, gate_TK=gate_TK, sent_TK=sent_TK)
    x_TD = torch.randn(T, D, dtype=torch.float64).to(dtype)
    if valid_T is not None:
        x_TD[~valid_T] = torch.nan
    return x_TD.requires_grad_(), with_gates(routing, gates_of(routing).detach().clone().requires_grad_())


def loss_of(out: Dispatched, r: int) -> Tensor:
    torch.manual_seed(80 + r)
    return (out.y_TO * torch.randn(out.y_TO.shape, dtype=torch.float64).to(out.y_TO.dtype)).sum() + out.y_TO.sum()


def run(
    dispatcher: torch.nn.Module, x_TD: Tensor, routing: Routing, bank: ExpertBank, r: int, sequences: int = 1
) -> Dispatched:
    torch.manual_seed(100 + r)  # for random numbers in training
    out: Dispatched = dispatcher(x_TD, routing, bank, num_sequences=sequences)
    loss_of(out, r).backward()
    return out


def parity(
    local: DispatcherSpec,
    size: int,
    *,
    form: Form = "token_choice",
    K: int = 2,
    dtype: torch.dtype = torch.float64,
    tokens: Sequence[int] = TOKENS,
    skewed: bool = False,
    padded: bool = False,
    sequences: int = 1,
) -> None:
    """Outputs, drops, gradients of tokens, gates and experts."""

    def make(r: int) -> tuple[Tensor, Routing]:
        return case_of(r, form, K, dtype, tokens=tokens, skewed=skewed, padded=padded)

    what = f"{local}, size {size}, {form}, K={K}, {dtype}, tokens {tokens}"
    whole, everywhere = bank_of(None, dtype), build(local, DIMS)
    expected = [(*(made := make(r)), run(everywhere, *made, whole, r, sequences)) for r in range(world())]

    dispatcher = build(ExpertParallel(size=size, local=local), DIMS)
    part = bank_of(dispatcher.local_experts, dtype)
    x_TD, routing = make(rank())
    out = run(dispatcher, x_TD, routing, part, rank(), sequences)

    x_expected_TD, routing_expected, out_expected = expected[rank()]
    close(out.y_TO.detach(), out_expected.y_TO.detach(), f"y of {what}")
    assert int(out.dropped) == int(out_expected.dropped), what
    assert x_TD.grad is not None and x_expected_TD.grad is not None
    close(x_TD.grad, x_expected_TD.grad, f"gradient of tokens of {what}")
    gate_grad, expected_grad = gates_of(routing).grad, gates_of(routing_expected).grad
    assert gate_grad is not None and expected_grad is not None
    close(gate_grad, expected_grad, f"gradient of gates of {what}")
    replicas = expert_mesh(size, "cpu").get_group(REPLICA)
    here = dispatcher.local_experts
    for (name, p), whole_p in zip(part.named_parameters(), whole.parameters(), strict=True):
        assert p.grad is not None and whole_p.grad is not None, f"{name} of {what}"
        grad = p.grad.clone()
        dist.all_reduce(grad, group=replicas)
        close(grad, whole_p.grad[here.start : here.stop], f"gradient of {name} of {what}")
