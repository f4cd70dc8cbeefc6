"""What growing by processes costs: the same processes, each with as many experts and tokens, alone or sharing.

    torchrun --nproc-per-node 4 benchmarks/growth.py

A layer's forward and backward pass in every process at once, in turns: with experts of its own (one rank an expert
group), and with those of groups of two, four, ... ranks, which are so many times as many experts. Work a process is the
same, so what is above 1 is the exchange: planning, copies, waiting for each other. Rows, bytes and messages are counted
without sending (``moekit.parallel.traffic``) and are exact for the routing at hand.
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
from moekit.parallel.traffic import choices_of, rows_of, traffic
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_experts.glu import Glu


@dataclass(frozen=True)
class Sizes:
    """Of one process: T tokens of width D, ``held`` experts of width H, K choices a token."""

    T: int
    D: int
    H: int
    held: int
    K: int


def routing_of(sizes: Sizes, E: int) -> TokenChoice:
    """Choices at random, every expert as likely."""
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
        """One pass there and back; how long it took until every rank was done."""
        dist.barrier()
        start = time.perf_counter()
        self.dispatcher(self.x_TD, self.routing, self.experts).y_TO.sum().backward()
        dist.barrier()
        if count:
            self.seconds.append(time.perf_counter() - start)

    def row(self, alone: Layout) -> str:
        """A line of the table."""
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
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description="the cost of sharing experts, at so many experts a process")
    for name, default in (("T", 1024), ("D", 256), ("H", 256), ("held", 16), ("K", 4), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    world, sizes = dist.get_world_size(), Sizes(asked.T, asked.D, asked.H, asked.held, asked.K)
    layouts = [Layout(sizes, size) for size in range(1, world + 1) if world % size == 0]
    for i in range(asked.rounds + 1):
        for layout in layouts:
            layout.step(count=i > 0)
    if dist.get_rank() == 0:
        print(f"{world} processes, each with {sizes}")
        print("| ranks | experts | rows a token | bytes a token, there and back | messages | ms, best | ÷ alone |")
        print("|---|---|---|---|---|---|---|")
        for layout in layouts:
            print(layout.row(layouts[0]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
