"""How close ``auto`` comes to the fastest dispatcher over many sizes, and to the layer as one would first write it.

    python benchmarks/dispatcher_grid.py --threads 2           # prints
    python benchmarks/dispatcher_grid.py --threads 2 --docs    # also writes docs/dispatcher_grid.json and its table

Forward and backward, all variants interleaved. ``auto`` measures before the rounds that count, as in a training run.
With transformers installed, its grouped experts are a variant too. Sizes that do not fit into ``--work`` are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moekit import build
from moekit.files import replace_text
from moekit.spec.kinds import DispatcherSpec
from moekit.spec.loading import component_spec
from moekit_bench.layers import dispatcher_variant, plain_variant
from moekit_bench.measure import Clock, Variant, time_interleaved
from moekit_bench.peers import transformers
from moekit_bench.request import Shape
from moekit_bench.results import machine, ratio
from moekit_bench.workload import make_workload

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "dispatcher_grid.json", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by benchmarks/dispatcher_grid.py -->\n", "<!-- end -->\n"
CANDIDATES = ("fused", "grouped", "textbook", "loop")
TARGET = 1.03


def shapes(most_work: float) -> Iterator[Shape]:
    """The grid: tokens, widths, experts; without those of more multiply-adds, or more weights, than a CPU takes."""
    for T, (D, H), (E, K) in product(
        (64, 256, 1024, 4096, 16384),
        ((64, 64), (64, 256), (256, 128), (256, 1024), (1024, 512)),
        ((4, 1), (8, 2), (64, 8), (256, 8)),
    ):
        if 3 * T * K * D * H <= most_work and E * D * H <= 1 << 25:
            yield Shape(T, D, H, E, K)


def row(shape: Shape, rounds: int) -> dict[str, Any]:
    """Times of all variants over that of ``auto``."""
    work = make_workload(shape, "cpu", torch.float32)
    experts = work.experts()
    variants: list[Variant] = [plain_variant(work, experts)]
    for name in ("auto", *CANDIDATES):
        spec = component_spec("dispatcher", name)
        assert isinstance(spec, DispatcherSpec)
        dispatcher = build(spec, work.dims)
        if name == "auto":
            chosen = dispatcher.explain(work.x_TD, work.routing, experts).partition(":")[0]
        variants.append(dispatcher_variant(name, dispatcher, work, experts, spec))
    try:
        variants += [v for v in transformers.mixtral_experts(work, experts) if "grouped" in v.name]
    except ImportError:
        pass  # not installed
    variants = [v for v in variants if v.name != "loop" or shape.E < 64]  # would take minutes
    found = time_interleaved(variants, rounds=rounds, warmup=1, clock=Clock("cpu"), on_progress=lambda text: None)
    totals = {name: samples.total for name, samples in found.items()}
    others = {name: min(total) for name, total in totals.items() if name != "auto"}
    best = min(others, key=others.__getitem__)
    seconds = ratio(totals["auto"], totals[best])
    return {
        "shape": list(shape),
        "chosen": chosen,
        "fastest": best,
        "milliseconds": round(1000 * min(totals["auto"]), 3),
        "over_fastest": round(seconds.best, 3),
        "over_fastest_median": round(seconds.median, 3),
        "over_written": round(ratio(totals["auto"], totals["plain"]).median, 3),
    }


def table(data: dict[str, Any]) -> str:
    """The section of the page."""
    rows = data["rows"]
    worst = max(rows, key=lambda each: each["over_fastest_median"])
    within = sum(each["over_fastest_median"] <= TARGET for each in rows)
    written = statistics.median(each["over_written"] for each in rows)
    lines = [
        f"{len(rows)} sizes on {data['machine']}, {data['threads']} threads, torch {data['torch']}, fp32, forward",
        f"and backward, {data['rounds']} rounds. `auto` takes at most {TARGET:g} of the time of the fastest variant",
        f"in {within} of {len(rows)} sizes; the worst is T, D, H, E, K = {', '.join(map(str, worst['shape']))} with",
        f"{worst['over_fastest_median']:.2f}. Over the layer as one would first write it, the median is {written:.2f}.",
        "",
        "| T, D, H, E, K | ms | `auto` chose | fastest | ÷ fastest, best (median) | ÷ `plain`, median |",
        "|---|---|---|---|---|---|",
        *(
            f"| {', '.join(map(str, each['shape']))} | {each['milliseconds']:.3g} | `{each['chosen']}` | "
            f"`{each['fastest']}` | {each['over_fastest']:.2f} ({each['over_fastest_median']:.2f}) | "
            f"{each['over_written']:.2f} |"
            for each in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=float, default=1e10, help="most multiply-adds of a forward pass")
    parser.add_argument("--docs", action="store_true", help="write docs/dispatcher_grid.json and docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for shape in shapes(args.work):
        rows.append(row(shape, args.rounds))
        print(rows[-1], flush=True)
    data = {
        "machine": machine("cpu", torch.float32)["name"],
        "threads": args.threads,
        "torch": torch.__version__.partition("+")[0],
        "rounds": args.rounds,
        "rows": rows,
    }
    print(table(data))
    if args.docs:
        replace_text(RESULTS, json.dumps(data, indent=1) + "\n")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        replace_text(PAGE, before + BEGIN + table(data) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
