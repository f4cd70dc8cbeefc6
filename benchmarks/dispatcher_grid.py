"""How close ``auto`` comes to the fastest dispatcher over many sizes, and to the layer as others write it.

    python benchmarks/dispatcher_grid.py              # prints; about twelve minutes on two cores
    python benchmarks/dispatcher_grid.py --docs       # also writes the table of docs/benchmarks.md

Each cell is a size, a number of threads, and a pass: ``forward`` without gradients, or ``both``, forward and backward.
All variants are interleaved; one that is far from the fastest is not run further. ``auto`` measures before the rounds
that count, as in a training run, and without times that were kept earlier. With transformers installed, its grouped
experts are a variant too. Cells that were measured are kept in ``--cells``, so a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import measured
import torch

from moekit import build
from moekit.spec.kinds import DispatcherSpec
from moekit.spec.loading import component_spec
from moekit_bench.layers import dispatcher_variant, plain_variant
from moekit_bench.measure import Variant
from moekit_bench.peers import transformers
from moekit_bench.request import Shape
from moekit_bench.results import ratio, to_json
from moekit_bench.workload import Workload, make_workload
from moekit_dispatchers.auto.choices import CHOICES

CANDIDATES = {
    "fused": "fused",
    "onednn": "{use: fused, products: onednn}",
    "textbook": "textbook",
    "grouped": "grouped",
    "loop": "loop",
}
TARGET = 1.03
PASSES = ("both", "forward")
FAR = {0: 3.0, 2: 1.3}
"""After these rounds, a variant that took so many times the shortest time is not run further: it is not the fastest."""

MOST_WEIGHTS, MOST_WORK = 1 << 23, 2.5e9
"""Multiply-adds of a token through all experts, and of all tokens through theirs, beyond which a size is skipped."""


def shapes() -> Iterator[Shape]:
    """The grid: tokens, widths, experts."""
    for T, (D, H), (E, K) in product(
        (64, 256, 1024, 4096, 16384),
        ((64, 64), (128, 256), (256, 128), (1024, 512)),
        ((4, 1), (8, 2), (64, 8), (256, 8)),
    ):
        if 3 * T * K * D * H <= MOST_WORK and E * D * H <= MOST_WEIGHTS:
            yield Shape(T, D, H, E, K)


def variants_of(work: Workload) -> tuple[list[Variant], Any]:
    """Everything that computes the layer, with the same weights; and ``auto``, to be asked."""
    experts = work.experts()
    variants, auto = [plain_variant(work, experts)], None
    for name, text in {"auto": "auto", **CANDIDATES}.items():
        if name == "loop" and work.shape.E > 8:  # minutes, and never the fastest
            continue
        spec = component_spec("dispatcher", text if "{" not in text else {"use": "fused", "products": "onednn"})
        assert isinstance(spec, DispatcherSpec)
        dispatcher = build(spec, work.dims)
        auto = dispatcher if name == "auto" else auto
        variants.append(dispatcher_variant(name, dispatcher, work, experts, spec))
    try:
        variants += [v for v in transformers.mixtral_experts(work, experts) if "grouped" in v.name]
    except ImportError:
        pass  # not installed
    explain = auto.explain
    return variants, lambda: explain(work.x_TD, work.routing, experts)


def seconds(variant: Variant, backward: bool) -> float:
    """Of one run; of the processor where there is one thread, which other work does not change."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    with torch.set_grad_enabled(backward):
        y = variant.forward()
    if backward:
        torch.autograd.grad(y, list(variant.leaves), torch.ones_like(y))
    return clock() - start


def rounds(variants: Sequence[Variant], backward: bool, budget: float, most: int) -> dict[str, list[float]]:
    """The seconds of each variant in each round: five rounds at least, and no more than the budget allows."""
    for variant in variants:
        seconds(variant, backward)
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    left, start = list(variants), time.perf_counter()
    for turn in range(most):
        if turn >= 5 and time.perf_counter() - start > budget:
            break
        for variant in random.Random(turn).sample(left, len(left)):  # so that none always follows the same one
            taken[variant.name].append(seconds(variant, backward))
        if turn in FAR:
            enough = FAR[turn] * min(min(each) for each in taken.values())
            left = [v for v in left if v.name in ("auto", "plain") or min(taken[v.name]) <= enough]
    return taken


def cell(shape: Shape, threads: int, budget: float) -> dict[str, Any]:
    """Both passes of a size with so many threads."""
    torch.set_num_threads(threads)
    variants, explain = variants_of(make_workload(shape, "cpu", torch.float32))
    found: dict[str, Any] = {"shape": list(shape), "threads": threads}
    for name in PASSES:
        with torch.set_grad_enabled(name == "both"):
            chosen = explain().partition(":")[0]
        share = budget * (0.7 if name == "both" else 0.3)
        taken = rounds(variants, name == "both", share, 300)
        others = {other: min(each) for other, each in taken.items() if other != "auto"}
        best = min(others, key=others.__getitem__)
        over = {
            other: to_json(ratio(taken["auto"][: len(each)], each)) for other, each in taken.items() if other != "auto"
        }
        milliseconds = 1000 * min(taken["auto"])
        found[name] = {
            "chosen": chosen,
            "fastest": best,
            "ms": milliseconds,
            "rounds": len(taken["auto"]),
            "over": over,
        }
    return found


def table(cells: Sequence[dict[str, Any]]) -> measured.Table:
    """The cells as a table: a row is a size, with all threads and passes."""
    kinds = [(threads, name) for threads in sorted({c["threads"] for c in cells}, reverse=True) for name in PASSES]
    by_key = {(*c["shape"], c["threads"]): c for c in cells}
    every = [(c, name, c[name]["over"][c[name]["fastest"]]) for c in cells for name in PASSES]
    worst, worst_pass, worst_ratio = max(every, key=lambda each: each[2]["median"])
    sizes = list(dict.fromkeys(tuple(c["shape"]) for c in cells))
    columns = {"T, D, H, E, K": "{}, {}, {}, {}, {}", "ms": "{:.3g}", "chosen": "`{}`"}
    for threads, name in kinds:
        columns[f"{name}, {threads} thread{'s'[: threads - 1]}"] = measured.RATIO
    columns["÷ `plain`"] = columns["÷ transformers"] = "{median:.2f}"
    rows = []
    for size in sizes:
        first = by_key[*size, kinds[0][0]]["both"]
        ratios = [by_key[*size, threads][name] for threads, name in kinds]
        peer = next((each for other, each in first["over"].items() if "transformers" in other), None)
        rows.append(
            [list(size), first["ms"], first["chosen"]]
            + [each["over"][each["fastest"]] for each in ratios]
            + [first["over"]["plain"], peer]
        )
    words = (
        "Forward and backward (`both`) and forward without gradients, fp32: `auto` over the fastest of `fused`, "
        "`onednn`, `textbook`, `grouped`, `loop` (up to 8 experts), `plain` and transformers' grouped experts; best "
        "round (median of ratios within rounds). Milliseconds, the choice and the last two columns, which are medians, "
        "are of the first kind of cell. `auto` takes at most {target} of the fastest in {best} of {cells} cells by the "
        "best round and in {within} by the median; the median cell is {middle:.2f}. The worst cell is T, D, H, E, K = "
        "{shape} with {threads}, {pass}: {worst:.2f}, where `auto` chose `{chosen}` and `{fastest}` was the "
        "fastest."
    )
    values = {
        "target": TARGET,
        "cells": len(every),
        "best": sum(each["best"] <= TARGET for *_, each in every),
        "within": sum(each["median"] <= TARGET for *_, each in every),
        "middle": statistics.median(each["median"] for *_, each in every),
        "shape": ", ".join(map(str, worst["shape"])),
        "threads": in_words([worst["threads"]]),
        "pass": worst_pass,
        "worst": worst_ratio["median"],
        "chosen": worst[worst_pass]["chosen"],
        "fastest": worst[worst_pass]["fastest"],
    }
    device = in_words(list(dict.fromkeys(threads for threads, _ in kinds)))
    return measured.table(columns, rows, words=words, values=values, device=device)


def in_words(threads: Sequence[int]) -> str:
    """``2 and 1 thread``."""
    return f"{' and '.join(map(str, threads))} thread{'s'[: threads[-1] - 1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", default="2,1", help="numbers of threads, the first of which the choice is shown of"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for the rounds of a size and number of threads")
    parser.add_argument("--every", type=int, default=1, help="only every so many sizes, for a trial")
    parser.add_argument(
        "--cells", type=Path, default=Path(tempfile.gettempdir()) / "dispatcher_grid.jsonl", help="measured cells"
    )
    parser.add_argument("--fresh", action="store_true", help="measure cells again that are in --cells")
    measured.option(parser)
    args = parser.parse_args()
    if args.fresh:
        args.cells.unlink(missing_ok=True)
    known = [json.loads(line) for line in args.cells.read_text().splitlines()] if args.cells.exists() else []
    CHOICES.user = None
    wanted = [(shape, int(threads)) for shape in list(shapes())[:: args.every] for threads in args.threads.split(",")]
    cells, start = [], time.perf_counter()
    for at, (shape, threads) in enumerate(wanted, 1):
        done = next((c for c in known if (c["shape"], c["threads"]) == (list(shape), threads)), None)
        if done is None:
            done = cell(shape, threads, args.seconds)
            with args.cells.open("a") as file:
                file.write(json.dumps(done) + "\n")
            shown = {name: (done[name]["chosen"], done[name]["fastest"]) for name in PASSES}
            over = {name: round(done[name]["over"][done[name]["fastest"]]["median"], 2) for name in PASSES}
            spent = time.perf_counter() - start
            print(f"{at}/{len(wanted)} {spent:.0f} s {shape}, {threads} threads: {shown} {over}", flush=True)
        cells.append(done)
    measured.publish("dispatcher_grid", table(cells), docs=args.docs)


if __name__ == "__main__":
    main()
