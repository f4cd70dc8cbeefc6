"""Run by ``test_expert_parallel`` in every process: experts split over ranks against one process with all experts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from expert_parallel_cases import (
    DIMS,
    DROPLESS,
    DROPPING,
    TOKENS,
    TOLERANCE,
    D,
    E,
    O,
    bank_of,
    case_of,
    close,
    parity,
    rank,
    run,
    world,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.contracts import ExpertBank, Init, LayerDims
from moekit.contracts.layer import Groups
from moekit.moe_layer import MoELayer
from moekit.parallel.mesh import EXPERT, REPLICA, expert_mesh, world_mesh
from moekit.parallel.traffic import choices_of
from moekit.registry import build
from moekit.routing import TokenChoice, gates_of
from moekit.spec.kinds import DispatcherSpec, Form, MoE
from moekit.weights import init_weights
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sign_bias import SignBias
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.expert_parallel.naive import naive_exchange
from moekit_dispatchers.fused import Fused
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_plan.traffic import rows_of, traffic
from moekit_routers.topk import TopK

TIMEOUT = timedelta(seconds=200)  # which every group of ranks must inherit


def reference_implementation(size: int) -> None:
    """Outputs and sent rows against loops over ranks, tokens and choices."""
    made = [
        case_of(r, "token_choice", 3, torch.float64, tokens=TOKENS, skewed=False, padded=True) for r in range(world())
    ]
    whole = bank_of(None, torch.float64)

    def expert(e: int) -> Callable[[Tensor], Tensor]:
        up, down, b_up, b_down = (getattr(whole, n)[e] for n in ("w_up_EHD", "w_down_EOH", "b_up_EH", "b_down_EO"))
        return lambda x_D: down @ torch.nn.functional.gelu(up @ x_D + b_up) + b_down

    first = rank() // size * size
    group, choices = range(first, first + size), []
    for r in group:
        routing = made[r][1]
        assert isinstance(routing, TokenChoice)
        counts_TK = routing.counts_TK()
        assert counts_TK is not None
        choices.append(
            [
                [(int(e), g) for e, g, counts in zip(*row, strict=True) if counts]
                for row in zip(routing.expert_TK, routing.gate_TK, counts_TK, strict=True)
            ]
        )
    held = E // size
    experts = [[expert(e) for e in range(g * held, (g + 1) * held)] for g in range(size)]
    y, sent = naive_exchange([made[r][0] for r in group], choices, experts, O)

    dispatcher = build(ExpertParallel(size=size, local=Loop()), DIMS)
    x_TD, routing = made[rank()]
    out = dispatcher(x_TD, routing, bank_of(dispatcher.local_experts, torch.float64))
    mine = rank() - first
    close(out.y_TO.detach(), y[mine].detach(), "y of the reference")
    assert rows_of(routing, size, mine) == sum(sent[mine]) - sent[mine][mine]


def bytes_sent(size: int, dtype: torch.dtype, form: Form = "token_choice", *, autocast: bool = False) -> None:
    """The bytes that pass the collective equal those computed without it, forward and backward, over all ranks."""
    x_TD, routing = case_of(rank(), form, 3, dtype, tokens=TOKENS, skewed=False, padded=False)
    dispatcher = build(ExpertParallel(size=size, local=Loop()), DIMS)
    bank, mine = bank_of(dispatcher.local_experts, dtype), rank() % size
    real, passed = dist.all_to_all_single, [0, 0]

    def counted(
        out: Tensor, x: Tensor, receives: list[int] | None = None, sends: list[int] | None = None, **more: Any
    ) -> Any:
        sends = [x.shape[0] // size] * size if sends is None else sends
        passed[0] += (x.shape[0] - sends[mine]) * x.shape[1] * x.element_size()
        passed[1] += size - 1
        return real(out, x, receives, sends, **more)

    computed = traffic(
        rows_of(routing, size, mine),
        size=size,
        choices=choices_of(routing, size),
        dim=D,
        out_dim=O,
        element_bytes=2 if autocast else x_TD.element_size(),
        gate_bytes=gates_of(routing).element_size(),
    )
    dist.all_to_all_single = counted
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = dispatcher(x_TD, routing, bank)
        forward, passed[:] = list(passed), [0, 0]
        out.y_TO.sum().backward()
        backward = list(passed)
    finally:
        dist.all_to_all_single = real
    assert forward[1] == computed.forward_messages
    assert backward[1] == computed.backward_messages
    totals = torch.tensor([forward[0], backward[0], computed.forward, computed.backward], dtype=torch.float64)
    dist.all_reduce(totals)
    assert totals[0] == totals[2] > 0
    assert totals[1] == totals[3] > 0


def layers(size: int, local: DispatcherSpec, *, recompute: bool) -> None:
    """A whole layer, in one process and on ranks: two passes per step, maybe recomputed; repeated, the same bits."""
    spec = MoE(
        router=TopK(top_k=3, score="sigmoid", renormalize=True),
        experts=Glu(count=E, hidden=4),
        dispatcher=local,
        shared=Glu(hidden=3),
        balancers={"load": LoadBalance(weight=0.1), "bias": SignBias()},
    )

    def build_layer(spec: MoE) -> MoELayer:
        layer = MoELayer.from_spec(spec, dim=D).double()
        init_weights(layer, Init(std=0.5), seed=3)
        return layer

    def passes(layer: MoELayer, r: int) -> list[Tensor]:
        outs = []
        for i in range(2):
            torch.manual_seed(10 * r + i)
            x = torch.randn(TOKENS[r] // 3, 3, D, dtype=torch.float64, requires_grad=True)
            y, report = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            assert int(report.load_E.sum()) == x[..., 0].numel() * 3
            outs += [y, x]
            (y.square().sum() + report.loss() * y.shape[0]).backward()
        return [outs[0].detach(), outs[2].detach(), *(x.grad for x in outs[1::2])]

    def grads() -> dict[str, Tensor]:
        layer.zero_grad()
        found = passes(layer, rank())
        for value, expect in zip(found, expected, strict=True):
            close(value, expect, "y or gradient of x")
        return {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}

    whole = build_layer(spec)
    expected = [passes(whole, r) for r in range(world())][rank()]
    layer = build_layer(replace(spec, dispatcher=ExpertParallel(size=size, local=local)))
    first, again = grads(), grads()
    everyone, replicas = world_mesh("cpu").get_group(), expert_mesh(size, "cpu").get_group(REPLICA)
    here = layer.dispatcher.local_experts
    assert here is not None and layer.experts.num_experts == len(here)
    for name, p in whole.named_parameters():
        assert p.grad is not None
        assert torch.equal(first[name], again[name]), f"{name}: two passes differ"
        routed = name.startswith("experts.")
        dist.all_reduce(first[name], group=replicas if routed else everyone)
        close(first[name], p.grad[here.start : here.stop] if routed else p.grad, f"gradient of {name}")
    with torch.no_grad():
        x = torch.randn(1, 1, D, dtype=torch.float64)
        close(layer.eval()(x)[0], whole.eval()(x)[0], "y without gradients")


class DetachedWithoutRows(ExpertBank):
    """Experts that return a tensor without autograd history if there are no rows."""

    def __init__(self, inner: ExpertBank) -> None:
        super().__init__()
        self.inner, self.num_experts, self.out_dim = inner, inner.num_experts, inner.out_dim

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        y_NO: Tensor = self.inner(x_ND, groups) if x_ND.shape[0] else x_ND.new_zeros(0, self.out_dim)
        return y_NO


def ranks_without_rows_take_part_in_backward() -> None:
    """All tokens choose experts of the first rank; the other ranks receive nothing and still take part in backward."""
    dispatcher = build(ExpertParallel(local=Loop()), DIMS)
    x_TD, routing = case_of(0, "token_choice", 2, torch.float64, tokens=TOKENS, skewed=True, padded=False)
    run(dispatcher, x_TD, routing, DetachedWithoutRows(bank_of(dispatcher.local_experts, torch.float64)), 0)
    assert x_TD.grad is not None and bool((x_TD.grad != 0).any(1).all())


def compiled_and_autocast() -> None:
    """``torch.compile`` excludes the exchange; under autocast experts run in bf16 and return bf16 rows."""
    spec = MoE(router=TopK(top_k=2), experts=Glu(count=E, hidden=4), dispatcher=ExpertParallel(local=Grouped()))
    layer = MoELayer.from_spec(spec, dim=D)
    init_weights(layer, Init(std=0.5), seed=3)
    torch.manual_seed(rank())
    x = torch.randn(2, 5, D)
    y, _ = layer(x)
    again, _ = torch.compile(layer, backend="aot_eager")(x)
    close(again.detach(), y.detach(), "y of a compiled layer")
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = layer(x)
    assert rounded.dtype == torch.bfloat16
    close(rounded.detach(), y.detach().bfloat16(), "y under autocast")
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = torch.compile(layer, backend="aot_eager")(x)
    close(again.detach(), rounded.detach(), "y of a compiled layer under autocast")


class RecordedWork:
    """An exchange in progress that records when it is waited for."""

    def __init__(self, work: dist.Work, events: list[str]) -> None:
        self.work, self.events = work, events

    def wait(self) -> None:
        self.events.append("waited")
        self.work.wait()


def shared_experts_run_during_the_exchange() -> None:
    """The layer computes shared experts after tokens are dispatched, and before it waits for received ones."""
    router, experts = TopK(top_k=2), Glu(count=E, hidden=4)
    spec = MoE(router=router, experts=experts, shared=Glu(hidden=3), dispatcher=ExpertParallel(local=Loop()))
    layer, events, real = MoELayer.from_spec(spec, dim=D), [], dist.all_to_all_single

    def recorded(*args: Any, async_op: bool = False, **more: Any) -> Any:
        work = real(*args, async_op=async_op, **more)
        events.append("sent" if async_op else "counted")
        return RecordedWork(work, events) if async_op else work

    for name in ("shared", "experts"):
        layer.get_submodule(name).register_forward_hook(lambda *_, name=name: events.append(name))
    dist.all_to_all_single = recorded
    try:
        layer(torch.randn(2, 3, D))
    finally:
        dist.all_to_all_single = real
    there = ["counted", *["sent"] * 3, "shared", *["waited"] * 3]
    assert events == [*there, "experts", "sent", "waited"], events


def refusals() -> None:
    with pytest.raises(ValueError, match=r"ep=5 does not divide the \d ranks of this run; expected one of 1, "):
        build(ExpertParallel(size=5, local=Loop()), LayerDims(dim=D, num_experts=10))
    with pytest.raises(ValueError, match="ranks cannot share 7 experts evenly: give expert_parallel a size"):
        build(ExpertParallel(local=Loop()), LayerDims(dim=D, num_experts=7))
    dispatcher = build(ExpertParallel(local=Loop()), DIMS)
    x_TD, routing = case_of(0, "token_choice", 2, torch.float64, tokens=TOKENS, skewed=False, padded=False)
    with pytest.raises(ValueError, match=f"this rank computes experts .* but the bank holds {E}"):
        dispatcher(x_TD, routing, bank_of(None, torch.float64))
    one = build(ExpertParallel(size=1, local=Loop()), DIMS)
    assert one.local_experts is None


def meshes(size: int) -> None:
    mesh = expert_mesh(size, "cpu")
    assert mesh is expert_mesh(size, "cpu")
    assert mesh.get_coordinate() == divmod(rank(), size)
    mine = rank() // size * size
    assert dist.get_process_group_ranks(mesh.get_group(EXPERT)) == list(range(mine, mine + size))
    assert dist.get_process_group_ranks(mesh.get_group(REPLICA)) == list(range(rank() % size, world(), size))
    assert dist.get_process_group_ranks(world_mesh("cpu").get_group()) == list(range(world()))
    for group in (mesh.get_group(EXPERT), mesh.get_group(REPLICA), world_mesh("cpu").get_group()):
        assert group._get_backend(torch.device("cpu")).options._timeout == TIMEOUT


def quick() -> None:
    """A selection, in two processes."""
    meshes(2)
    refusals()
    parity(Grouped(), 2)
    parity(Capacity(factor=0.6, order="affinity"), 2, padded=True)
    parity(Capacity(factor=0.6, per="sequence"), 2, tokens=(9, 6), sequences=3)
    parity(Loop(), 2, tokens=(3, 0), skewed=True)
    reference_implementation(2)
    bytes_sent(2, torch.float64)
    bytes_sent(2, torch.float32, autocast=True)
    ranks_without_rows_take_part_in_backward()
    shared_experts_run_during_the_exchange()
    layers(2, Auto(), recompute=True)


def whole() -> None:
    """Everything, in four processes: one group of four, and two of two."""
    refusals()
    ranks_without_rows_take_part_in_backward()
    shared_experts_run_during_the_exchange()
    compiled_and_autocast()
    for size in (2, 4):
        meshes(size)
        reference_implementation(size)
        for dtype in TOLERANCE:
            bytes_sent(size, dtype)
        bytes_sent(size, torch.float32, autocast=True)
        bytes_sent(size, torch.float64, "expert_choice")
        for local in DROPLESS:
            for dtype in TOLERANCE:
                parity(local, size, dtype=dtype)
                parity(local, size, dtype=dtype, form="expert_choice", K=3)
            for K in (1, 3, E):
                parity(local, size, K=K)
                parity(local, size, K=K, padded=True)
            parity(local, size, skewed=True)
            parity(local, size, tokens=(0, 0, 0, 7))
            parity(local, size, tokens=(0, 0, 0, 0))
        for local in DROPPING:
            parity(local, size)
            parity(local, size, padded=True, K=3)
            parity(local, size, skewed=True)
            layers(size, local, recompute=False)
        for recompute in (False, True):
            layers(size, Grouped(), recompute=recompute)
            layers(size, Fused(), recompute=recompute)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    {"quick": quick, "whole": whole}[sys.argv[1]]()
    dist.destroy_process_group()
