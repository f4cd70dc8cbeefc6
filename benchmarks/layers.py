"""The tables of docs/benchmarks.md on a layer: the named shapes, other libraries, and more experts at equal work.

    python benchmarks/layers.py --threads 2            # prints; about six minutes on two cores
    python benchmarks/layers.py --threads 2 --docs     # also writes the tables

Forward and backward over the dense layer of equal multiply-adds. With transformers (from version 5) and st-moe-pytorch
installed, their layers are measured too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import measured
import torch

from moekit_bench.layers import compare_layers
from moekit_bench.measure import Settings
from moekit_bench.request import FOR_CPU, SHAPES, series_of
from moekit_bench.results import ShapeResult, VariantRow
from moekit_dispatchers.auto.choices import CHOICES

ONEDNN = "{use: fused, products: onednn}"
DISPATCHERS = ("loop", "grouped", "textbook", "fused", ONEDNN, "auto")
MORE_ROUNDS = {"small": 8, "tiny": 2}
"""Times as many rounds, for shapes that take little time."""

PEERS = {"transformers": "transformers", "st_moe_pytorch": "st_moe_pytorch"}
"""By the name that ``--against`` takes, the module."""


def rows_of(result: ShapeResult) -> Mapping[str, VariantRow]:
    """The variants of a shape by name, without what their options are."""
    return {"onednn" if "onednn" in row.name else row.name: row for row in result.rows}


def layers(shapes: Sequence[str], threads: int, rounds: int) -> tuple[measured.Table, measured.Table]:
    """The named shapes by dispatcher, and ``auto`` next to other libraries."""
    against = [name for name, module in PEERS.items() if find_spec(module)]
    names = ["plain", "loop", "grouped", "textbook", "fused", "onednn", "auto"]
    ours, theirs = [], []
    peers: list[str] = []
    for shape in shapes:
        settings = Settings(rounds=rounds * MORE_ROUNDS.get(shape, 1))
        peers_here = against if SHAPES[shape].E < 256 else []  # transformers' eager takes minutes
        result = compare_layers(shape, SHAPES[shape], settings, dispatchers=DISPATCHERS, against=peers_here)
        rows = rows_of(result)
        peers += [name for name in rows if name not in (*names, "dense", *peers)]
        print(shape, {name: (round(row.ratio.best, 2), round(row.ratio.median, 2)) for name, row in rows.items()})
        ours.append([shape, rows["dense"].ms, *(rows[name].ratio for name in names)])
        theirs.append((shape, rows))
    columns = {"shape": "`{}`", "dense, ms": "{:.1f}"} | {f"`{name}`": measured.RATIO for name in names}
    device = f"{threads} thread{'s'[: threads - 1]}"
    words = (
        "Forward and backward, ÷ dense, fp32, best round (median); {small} rounds of `small`, {tiny} of `tiny`, {few} "
        "of the others. `onednn` is `{{use: fused, products: onednn}}`."
    )
    values = {name: rounds * more for name, more in MORE_ROUNDS.items()} | {"few": rounds}
    first = measured.table(columns, ours, words=words, values=values, device=device)
    columns = {"shape": "`{}`"} | {f"`{name}`": measured.RATIO for name in ("auto", *peers)}
    second = measured.table(
        columns,
        [
            [shape, *(row.ratio if (row := rows.get(name)) else None for name in ("auto", *peers))]
            for shape, rows in theirs
        ],
        words="Forward and backward, ÷ dense, fp32, best round (median), of the same run as the table of dispatchers.",
        device=device,
    )
    return first, second


def growth(of: str, threads: int, rounds: int) -> measured.Table:
    """A shape with 8 to 256 experts at equal multiply-adds."""
    found = []
    for name, shape in series_of(of, SHAPES[of], "experts").items():
        result = compare_layers(name, shape, Settings(rounds=rounds, memory=True), dispatchers=["auto"])
        row = rows_of(result)["auto"]
        print(name, round(row.ratio.best, 2), round(row.ms))
        found.append((shape.E, row))
    first = found[0][1].ms
    rows = [[E, row.ratio, row.ms, row.ms / first, row.saved.bytes / 2**20 if row.saved else None] for E, row in found]
    columns = {"E": "{}", "`auto` ÷ dense": measured.RATIO, "ms": "{:.0f}", "ms ÷ ms at E = 8": "{:.2f}"}
    device = f"{threads} thread{'s'[: threads - 1]}"
    words = f"The shape is `{of}`."
    return measured.table(columns | {"saved, MiB": "{:.1f}"}, rows, words=words, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", default=FOR_CPU, choices=FOR_CPU)
    parser.add_argument("--growing", default="fine", choices=FOR_CPU, help="the shape that is given more experts")
    measured.option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    CHOICES.user = None  # auto measures anew
    ours, theirs = layers(args.shapes, args.threads, args.rounds)
    measured.publish("layers", ours, docs=args.docs)
    measured.publish("layers_of_libraries", theirs, docs=args.docs)
    measured.publish("layers_by_experts", growth(args.growing, args.threads, args.rounds), docs=args.docs)


if __name__ == "__main__":
    main()
