"""Runs on every rank of ``test_oracle_expert_parallel_bf16``: sharded experts under autocast, compared with the exact
result and with one process under autocast.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from test_oracle_bf16 import U, majorant, signs, spread
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.contracts import ExpertBank, LayerDims
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.spec.kinds import DispatcherSpec, ExpertSpec
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.loop import Loop
from moekit_experts.ffn import Ffn
from moekit_experts.glu import Glu

T, D, H, E = 61, 24, 16, 8  # T * D is a multiple of 3, the period of ``signs``, so that each rank's are a slice of all
DIMS = LayerDims(dim=D, num_experts=E)
GLU, FFN = Glu(count=E, hidden=H), Ffn(count=E, hidden=H, activation="gelu", bias=True)
Run = Callable[..., Tensor]


def bank_of(spec: ExpertSpec, held: range, dtype: torch.dtype) -> ExpertBank:
    """These experts of a bank that is the same on every rank."""
    torch.manual_seed(1)
    whole = build(spec, DIMS)
    part: ExpertBank = build(replace(spec, count=len(held)), replace(DIMS, num_experts=len(held)))
    part.load_state_dict({name: p[held.start : held.stop] for name, p in whole.state_dict().items()})
    return part.to(dtype)


def case_of(r: int, K: int, dtype: torch.dtype) -> tuple[Tensor, TokenChoice]:
    """Tokens and their routing on rank r: the same fp32 numbers in any dtype."""
    torch.manual_seed(100 * K + r)
    x_TD, gate_TK, zero_TE = torch.randn(T, D), torch.rand(T, K), torch.zeros(T, E)
    expert_TK = torch.rand(T, E).topk(K).indices
    gate_TK = gate_TK.to(dtype).requires_grad_()
    routing = TokenChoice(logits_TE=zero_TE, scores_TE=zero_TE, expert_TK=expert_TK, gate_TK=gate_TK)
    return x_TD.to(dtype).requires_grad_(), routing


def values(run: Run, x_TD: Tensor, routing: TokenChoice, bank: ExpertBank) -> list[Tensor]:
    """The output and every gradient; with fp32 tokens, forward is under autocast (backward is not)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=x_TD.dtype == torch.float32):
        y_TO = run(x_TD, routing, bank)
    return [y_TO.detach(), *torch.autograd.grad(y_TO, [x_TD, routing.gate_TK, *bank.parameters()], signs(y_TO))]


def together(K: int, dtype: torch.dtype) -> tuple[Tensor, TokenChoice]:
    """The tokens of all ranks, concatenated, and their routing."""
    x, routings = zip(*(case_of(r, K, dtype) for r in range(dist.get_world_size())), strict=True)
    names = ("logits_TE", "scores_TE", "expert_TK", "gate_TK")
    joined = {name: torch.cat([getattr(routing, name).detach() for routing in routings]) for name in names}
    joined["gate_TK"].requires_grad_()
    return torch.cat([x_TD.detach() for x_TD in x]).requires_grad_(), TokenChoice(**joined)


def mine(found: list[Tensor], held: range) -> list[Tensor]:
    """This rank's part of one process's results for all tokens and experts: its tokens, its experts."""
    mine_T = slice(dist.get_rank() * T, (dist.get_rank() + 1) * T)
    return [*(t[mine_T] for t in found[:3]), *(t[held.start : held.stop] for t in found[3:])]


def error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm())


def parity(local: DispatcherSpec, experts: ExpertSpec, K: int) -> None:
    """Tests every bound, and that it is not too wide: without one gate, or one rank's outputs, it is exceeded."""
    dispatcher, alone = build(ExpertParallel(local=local), DIMS), build(local, DIMS)
    held, every = dispatcher.local_experts, range(E)
    exact_bank, whole = bank_of(experts, every, torch.float64), bank_of(experts, every, torch.float32)
    part = bank_of(experts, held, torch.float32)

    def sharded(x_TD: Tensor, routing: TokenChoice, bank: ExpertBank) -> Tensor:
        return dispatcher(x_TD, routing, bank).y_TO

    def one(x_TD: Tensor, routing: TokenChoice, bank: ExpertBank) -> Tensor:
        return alone(x_TD, routing, bank).y_TO

    exact = mine(values(one, *together(K, torch.float64), exact_bank), held)
    single = mine(values(one, *together(K, torch.float32), whole), held)
    x_TD, routing = case_of(dist.get_rank(), K, torch.float32)
    found = values(sharded, x_TD, routing, part)
    what = f"rank {dist.get_rank()} of {dist.get_world_size()}, {local}, {experts}, K={K}"
    assert [t.dtype for t in found] == [torch.bfloat16, *[torch.float32] * (len(found) - 1)], what
    for i, (ours, theirs, right) in enumerate(zip(found, single, exact, strict=True)):
        assert spread(ours, right, roundings(K, i)) <= 1, f"{what}: tensor {i}"
        assert 0 < error(ours, right) <= 2**0.5 * error(theirs, right), f"{what}: tensor {i}"
    if experts is GLU:
        within(found, exact, K, held, what)

    again = values(lambda *given: checkpoint(sharded, *given, use_reentrant=False), x_TD, routing, part)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True)), f"{what}: recomputed"

    lost_TK = routing.gate_TK == routing.gate_TK.max()
    far_TK = routing.expert_TK >= E - len(held)  # of the last rank
    for how, removed_TK in (("a gate", lost_TK), ("a rank", far_TK)):
        less = replace(routing, gate_TK=routing.gate_TK.detach().masked_fill(removed_TK, 0).requires_grad_())
        for i, name in enumerate(("y", "gradient of x")):
            ours = values(sharded, x_TD, less, part)[i]
            assert spread(ours, exact[i], roundings(K, i)) > 1, f"{what}: {name} is right without {how}"


def roundings(K: int, tensor: int) -> int:
    """Of the output (tensor 0), or of a gradient: see ``test_oracle_expert_parallel_bf16``."""
    return (10 + K) * (1 if tensor == 0 else 2)


def within(found: list[Tensor], exact: list[Tensor], K: int, held: range, what: str) -> None:
    """Element by element, relative to the majorant of ``test_oracle_bf16``."""
    bank = bank_of(GLU, range(E), torch.float32)
    x_TD, routing = together(K, torch.float32)
    bounds, largest = majorant(x_TD, routing.gate_TK, routing.expert_TK, bank)
    for i, (ours, right, size) in enumerate(zip(found, exact, mine(bounds, held), strict=True)):
        off = (ours.double() - right).abs()
        assert bool((off <= roundings(K, i) * U * (1 + largest) * size).all()), f"{what}: tensor {i}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=200))
    whole = sys.argv[1] == "whole"
    for K in (1, 3, E) if whole else (3,):
        for local in (Loop(), Grouped()):
            for experts in (GLU, FFN):
                parity(local, experts, K)
    dist.destroy_process_group()
