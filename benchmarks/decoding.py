"""Decoding: tokens a second with and without a cache, of a recipe's model and of its dense baseline.

python benchmarks/decoding.py deepseek_v3 --lengths 256 1024

Weights are initialised, not trained: speed does not depend on them, except through the choice of experts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch

from moekit import Model, build, load
from moekit.inference.generate import sample

PROMPT = 16


def seconds(model: Model, length: int, *, cached: bool) -> float:
    """Time to continue a prompt until the text has ``length`` tokens."""
    prompt = torch.arange(PROMPT)
    start = time.perf_counter()
    sampled = sum(1 for _ in sample(model, prompt, tokens=length - PROMPT, context=length, cached=cached))
    assert sampled == length - PROMPT
    return time.perf_counter() - start


def measured(models: dict[str, Model], length: int, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Tokens a second of each model, without and with a cache: the best of several interleaved rounds."""
    for cached in (False, True):
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, model in models.items():
                rate = (length - PROMPT) / seconds(model, length, cached=cached)
                best[name] = max(best.get(name, 0.0), rate)
        yield "with" if cached else "without", best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="deepseek_v3")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024], help="of the finished texts, in tokens")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    spec = load(args.recipe).model
    baseline = spec.dense_baseline()
    assert baseline is not None, f"{args.recipe} has no dense baseline to compare with"
    torch.manual_seed(0)
    models: dict[str, Model] = {"mixture": build(spec).eval(), "dense": build(baseline).eval()}
    seconds(models["mixture"], 2 * PROMPT, cached=True)  # warm-up
    print("| text | cache | mixture, tokens/s | dense, tokens/s | mixture's time over dense |\n|---|---|---|---|---|")
    for length in args.lengths:
        for how, rate in measured(models, length, args.rounds):
            ratio = rate["dense"] / rate["mixture"]
            print(f"| {length} | {how} | {rate['mixture']:.0f} | {rate['dense']:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
