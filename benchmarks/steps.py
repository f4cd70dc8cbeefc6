"""The tables of docs/benchmarks.md on a whole training step: next to the dense baseline, or to transformers' model.

    python benchmarks/steps.py --docs                          # deepseek_v3 and switch, and their dense baselines
    python benchmarks/steps.py --against transformers --docs   # DeepSeek-V3 and a Mixtral of its sizes

Both are trained as ``moekit bench step`` trains them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import measured
import torch
from decoding import MIXTRAL

from moekit import load
from moekit.machine import keep_freed_memory
from moekit_bench.measure import Settings
from moekit_bench.step import compare_steps

RECIPES = ("deepseek_v3", "switch")
MODELS = {"DeepSeek-V3": (), "Mixtral": MIXTRAL}
OVERHEAD = ("balance", "bookkeeping")


def own_rows(recipes: list[str], settings: Settings) -> Iterator[list[Any]]:
    """A mixture next to its dense baseline."""
    for name in recipes:
        moe, dense = compare_steps(name, load(name), settings).rows
        step = sum(moe.parts.values())
        own = sum(moe.parts.get(part, 0.0) for part in OVERHEAD) / step
        yield [f"`{name}`", [moe.ms, dense.ms], moe.ratio, moe.ratio, 100 * moe.outside, 100 * own]


def peer_rows(settings: Settings, extra: list[str]) -> Iterator[list[Any]]:
    """A mixture next to transformers' fastest implementation of it."""
    for name, options in MODELS.items():
        recipe = load("deepseek_v3", ["model.mtp=null", *options, *extra])
        ours, theirs = compare_steps(name, recipe, settings, against=["transformers"]).rows
        saved = [row.saved.bytes / 1e6 for row in (ours, theirs) if row.saved is not None]
        parts = [[ours.parts[part], theirs.parts[part]] for part in ("forward", "backward", "optimizer")]
        yield [name, [ours.ms, theirs.ms], theirs.ratio, theirs.ratio, *parts, saved]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="with --against: options of the recipe")
    parser.add_argument("--against", choices=("transformers",), help="its model of the same weights, if installed")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="without --against")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    measured.option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as ``moekit train`` does
    settings = Settings(rounds=args.rounds, memory=bool(args.against))
    pair = "{:.0f}, {:.0f}"
    if args.against:
        columns = {"model": "{}", "ms, ours and theirs": pair, "theirs ÷ ours, best (median)": measured.RATIO}
        columns |= {"quartiles": "{low:.2f} to {high:.2f}"}
        columns |= {"forward, ms": pair, "backward": pair, "optimizer": pair, "saved for backward, MB": pair}
        name, rows = "steps_of_libraries", list(peer_rows(settings, args.overrides))
    else:
        columns = {"recipe": "{}", "ms, mixture and dense": pair, "÷ dense, best (median)": measured.RATIO}
        columns |= {
            "quartiles": "{low:.2f} to {high:.2f}",
            "outside, %": "{:.1f}",
            "balance and bookkeeping, %": "{:.1f}",
        }
        name, rows = "steps", list(own_rows(args.recipes, settings))
    words = f"{args.rounds} rounds, fp32. Parts are medians." if args.against else f"{args.rounds} rounds, fp32."
    measured.publish(name, measured.table(columns, rows, words=words), docs=args.docs)


if __name__ == "__main__":
    main()
