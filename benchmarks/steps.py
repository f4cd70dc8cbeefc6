"""The tables of docs/benchmarks.md on a whole training step: next to the dense baseline, or to transformers' model.

    python benchmarks/steps.py --docs                          # deepseek_v3 and switch, and their dense baselines
    python benchmarks/steps.py --against transformers --docs   # DeepSeek-V3 and a Mixtral of its sizes
    python benchmarks/steps.py --variants --docs               # deepseek_v3 in fp32, compiled, and in bf16-mixed

Both are trained as ``moekit bench step`` trains them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measured
import torch
from decoding import MIXTRAL

from moekit import load
from moekit.machine import keep_freed_memory
from moekit.training.run.prepare import quiet
from moekit_bench.measure import Settings, rotated
from moekit_bench.results import ratio
from moekit_bench.step import RecipeRunner, compare_steps

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


def variant_rows(name: str, settings: Settings) -> Iterator[list[Any]]:
    """A recipe in fp32, with compiled blocks, and in bf16-mixed; and the seconds of its first five steps."""
    half = replace(settings, dtype=torch.bfloat16)
    made = {"fp32": (settings, []), "fp32, `compile: true`": (settings, ["compile=true"])}
    made |= {"bf16-mixed": (half, []), "bf16-mixed, `compile: true`": (half, ["compile=true"])}
    with quiet(), TemporaryDirectory() as folder:
        runners, first = {}, {}
        for variant, (how, options) in made.items():
            runners[variant] = RecipeRunner(variant, load(name, options), how, Path(folder) / str(len(runners)))
            start = time.perf_counter()
            runners[variant].round(counts=False)
            first[variant] = time.perf_counter() - start
        for turn in range(settings.warmup + settings.rounds):
            for runner in rotated(list(runners.values()), turn):
                runner.round(counts=turn >= settings.warmup)
        for variant, runner in runners.items():
            found = ratio(runner.rounds, runners["fp32"].rounds)
            yield [variant, 1e3 * min(runner.rounds), found, found, first[variant]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="with --against: options of the recipe")
    parser.add_argument("--against", choices=("transformers",), help="its model of the same weights, if installed")
    parser.add_argument("--variants", action="store_true", help="the first recipe in other precisions, and compiled")
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
    elif args.variants:
        columns = {"`" + args.recipes[0] + "`": "{}", "ms": "{:.0f}", "÷ fp32, best (median)": measured.RATIO}
        columns |= {"quartiles": "{low:.2f} to {high:.2f}", "the first five steps, s": "{:.1f}"}
        name, rows = "steps_of_variants", list(variant_rows(args.recipes[0], settings))
    else:
        columns = {"recipe": "{}", "ms, mixture and dense": pair, "÷ dense, best (median)": measured.RATIO}
        columns |= {
            "quartiles": "{low:.2f} to {high:.2f}",
            "outside, %": "{:.1f}",
            "balance and bookkeeping, %": "{:.1f}",
        }
        name, rows = "steps", list(own_rows(args.recipes, settings))
    words = f"{args.rounds} rounds" + (
        ", fp32; parts are medians." if args.against else "." if args.variants else ", fp32."
    )
    measured.publish(name, measured.table(columns, rows, words=words), docs=args.docs)


if __name__ == "__main__":
    main()
