"""The cost of expert parallelism at constant work for each rank: a layer in expert groups of 1, 2, 4, ... ranks.

    python benchmarks/growth.py           # 2 and 4 ranks, each with one thread
    python benchmarks/growth.py --docs    # also writes the table of docs/benchmarks.md

Every rank runs a layer's forward and backward pass at once, group sizes interleaved. A group of n ranks has n times as
many experts, and the same work for each rank, so a ratio above 1 is the cost of all-to-all: planning, copies, waiting.
Rows, bytes and messages are counted without sending (``moekit_plan.traffic``), exactly for this routing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import measured
import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import Dispatcher, ExpertBank, LayerDims
from moekit.parallel.traffic import choices_of
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_bench.results import ratio, to_json
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_experts.glu import Glu
from moekit_plan.traffic import rows_of, traffic

DONE = "measured:"
"""Begins the line with the rows of rank 0."""


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

    def row(self, alone: Layout) -> list[Any]:
        """A row of the table."""
        rows = rows_of(self.routing, self.size, dist.get_rank() % self.size)
        choices = choices_of(self.routing, self.size)
        sent, T = traffic(rows, size=self.size, choices=choices, dim=self.sizes.D), self.sizes.T
        return [
            dist.get_world_size(),
            self.size,
            self.sizes.held * self.size,
            self.sizes.H,
            rows / T,
            [sent.forward / T, sent.backward / T],
            [sent.forward_messages, sent.backward_messages],
            1e3 * min(self.seconds),
            None if self is alone else ratio(self.seconds, alone.seconds),
        ]


COLUMNS = {
    "processes": "{}", "ep": "{}", "experts": "{}", "H": "{}", "rows per token": "{:.2f}",
    "bytes per token": "{:.0f}, {:.0f}", "messages": "{}, {}", "ms": "{:.0f}", "÷ alone, best (median)": measured.RATIO,
}  # fmt: skip


def work(sizes: Sizes, rounds: int) -> None:
    """Measures in this process, one of all ranks; rank 0 prints the rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    world = dist.get_world_size()
    layouts = [Layout(sizes, size) for size in range(1, world + 1) if world % size == 0]
    for i in range(rounds + 1):
        for layout in layouts:
            layout.step(count=i > 0)
    if dist.get_rank() == 0:
        print(DONE, json.dumps(to_json([layout.row(layouts[0]) for layout in layouts])), flush=True)
    dist.destroy_process_group()


def launched(world: int, script: list[str]) -> list[list[Any]]:
    """The rows that rank 0 of ``world`` prints: of a script with options."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run([*command, *script], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    (line,) = (line for line in output.splitlines() if line.startswith(DONE))
    rows: list[list[Any]] = json.loads(line.removeprefix(DONE))
    return rows


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("T", 1024), ("D", 256), ("held", 16), ("K", 4), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--H", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    measured.option(parser)
    args = parser.parse_args()
    if "RANK" in os.environ:
        work(Sizes(args.T, args.D, args.H[0], args.held, args.K), args.rounds)
        return
    rows = []
    for H in args.H:
        for world in args.ranks:
            sizes = asdict(Sizes(args.T, args.D, H, args.held, args.K)) | {"rounds": args.rounds}
            options = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
            rows += launched(world, [__file__, *options])
    made = measured.table(COLUMNS, rows, device="one thread for each process")
    measured.publish("growth", made, docs=args.docs)


if __name__ == "__main__":
    main()
