"""When ``grouped`` computes few pairs expert by expert: its time over that of the grouped product, without gradients.

python benchmarks/few_pairs.py
python benchmarks/few_pairs.py --docs    # also writes the table of docs/measurements.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from unittest import mock

import measured
import torch

from moekit import build
from moekit.routing import pairs_of
from moekit_bench.request import Shape
from moekit_bench.results import ratio
from moekit_bench.workload import make_workload
from moekit_dispatchers.grouped import Grouped, module

SHAPES = [
    *(Shape(T, 128, 64, 64, 8) for T in (1, 4, 16)),
    *(Shape(T, 512, 256, 64, 8) for T in (1, 8)),
    Shape(1, 512, 1024, 16, 2),
    Shape(1, 2048, 1408, 16, 6),
]


def ways(shape: Shape) -> Iterator[Callable[[], object]]:
    """A forward pass expert by expert, and one by the grouped product."""
    work = make_workload(shape, "cpu", torch.float32)
    experts, dispatcher = work.experts(), build(Grouped(), work.dims)
    yield lambda: module.dispatch_few(work.x_TD, pairs_of(work.routing), experts)

    def product() -> None:
        with mock.patch.object(module, "MOST_FEW", 0):
            dispatcher(work.x_TD, work.routing, experts)

    yield product


def seconds(run: Callable[[], object], calls: int) -> float:
    """Processor time of so many calls."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=50, help="of a round")
    measured.option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            few, product = ways(shape)
            rounds = [(seconds(few, args.calls), seconds(product, args.calls)) for _ in range(args.rounds + 1)][1:]
            N, used = shape.T * shape.K, module.are_few(shape.T * shape.K, shape.E, torch.device("cpu"))
            sizes = [shape.D, shape.H, shape.E, shape.K]
            rows.append([sizes, shape.T, N, "yes" if used else "no", ratio(*zip(*rounds, strict=True))])
    columns = {"D, H, E, K": "{}, {}, {}, {}", "tokens": "{}", "pairs": "{}", "used": "{}"}
    columns["expert by expert ÷ grouped product, best (median)"] = measured.RATIO
    measured.publish("few_pairs", measured.table(columns, rows), docs=args.docs)


if __name__ == "__main__":
    main()
