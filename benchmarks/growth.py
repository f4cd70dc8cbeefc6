"""The cost of expert parallelism at constant work for each rank: a layer in expert groups of 1, 2, 4, ... ranks.

    torchrun --nproc-per-node 4 benchmarks/growth.py

Every rank runs a layer's forward and backward pass at once, group sizes interleaved. A group of n ranks has n times as
many experts, and the same work for each rank, so a ratio above 1 is the cost of all-to-all: planning, copies, waiting.
Rows, bytes and messages are counted without sending (``moekit_plan.traffic``), exactly for this routing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.parallel.traffic import choices_of, rows_of
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_experts.glu import Glu
from moekit_plan.traffic import traffic


@dataclass(frozen=True)
class Sizes:
    """Of one rank: T tokens of width D, ``held`` experts of width H, K choices a token."""

    T: int
    D: int
    H: int
    held: int
    K: int


def routing_of(sizes: Sizes, E: int) -> TokenChoice:
    """Random choices, each expert equally likely."""
    scores_TE = torch.rand(sizes.T, E).softmax(1)
    gate_TK, expert_TK = scores_TE.topk(sizes.K, dim=1)
    gate_TK = gate_TK.clone().requires_grad_()
    return TokenChoice(logits_TE=scores_TE.log(), scores_TE=scores_TE, expert_TK=expert_TK, gate_TK=gate_TK)


class Layout:
    """Expert groups of ``size`` ranks."""

    def __init__(self, sizes: Sizes, size: int) -> None:
        self.sizes, self.size, E = sizes, size, sizes.held * size
        dims = LayerDims(dim=sizes.D, num_experts=E)
        self.dispatcher: Dispatcher = build(ExpertParallel(size=size, local=Auto()), dims)
        self.experts: ExpertBank = build(
            Glu(count=sizes.held, hidden=sizes.H), LayerDims(dim=sizes.D, num_experts=sizes.held)
        )
        self.routing = routing_of(sizes, E)
        self.x_TD: Tensor = torch.randn(sizes.T, sizes.D, requires_grad=True)
        self.seconds: list[float] = []

    def step(self, *, count: bool) -> None:
        """One forward and backward pass; with ``count``, records the time until every rank is done."""
        dist.barrier()
        start = time.perf_counter()
        self.dispatcher(self.x_TD, self.routing, self.experts).y_TO.sum().backward()
        dist.barrier()
        if count:
            self.seconds.append(time.perf_counter() - start)

    def row(self, alone: Layout) -> str:
        """A row of the table."""
        rows = rows_of(self.routing, self.size, dist.get_rank() % self.size)
        choices = choices_of(self.routing, self.size)
        sent, T = traffic(rows, size=self.size, choices=choices, dim=self.sizes.D), self.sizes.T
        ratios = [a / b for a, b in zip(self.seconds, alone.seconds, strict=True)]
        best = min(self.seconds) / min(alone.seconds)
        return (
            f"| {self.size} | {self.sizes.held * self.size} | {rows / T:.2f} | {sent.forward / T:.0f}, "
            f"{sent.backward / T:.0f} | {sent.forward_messages}, {sent.backward_messages} | "
            f"{1e3 * min(self.seconds):.0f} | {best:.2f} ({statistics.median(ratios):.2f}) |"
        )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("T", 1024), ("D", 256), ("H", 256), ("held", 16), ("K", 4), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    world, sizes = dist.get_world_size(), Sizes(args.T, args.D, args.H, args.held, args.K)
    layouts = [Layout(sizes, size) for size in range(1, world + 1) if world % size == 0]
    for i in range(args.rounds + 1):
        for layout in layouts:
            layout.step(count=i > 0)
    if dist.get_rank() == 0:
        print(f"{world} processes, each with {sizes}")
        print(
            "| ranks | experts | rows a token | bytes a token, forward and backward | messages | ms, best | ÷ alone |"
        )
        print("|---|---|---|---|---|---|---|")
        for layout in layouts:
            print(layout.row(layouts[0]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
