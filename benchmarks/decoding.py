"""Decoding: tokens a second of ``generate``, with and without a cache, or next to the same model in transformers.

python benchmarks/decoding.py --lengths 256 1024                    # the recipe deepseek_v3 and its dense baseline
python benchmarks/decoding.py --against transformers --batch 1 16    # DeepSeek-V3 and Mixtral, the same weights
python benchmarks/decoding.py --against transformers --docs          # also writes the table of docs/measurements.md

Weights are initialised, not trained: speed does not depend on them, except through the choice of experts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measured
import torch
from torch import Tensor

from moekit import Model, build, load
from moekit.inference.generate import continuations
from moekit.machine import keep_freed_memory
from moekit_bench.peers.transformers import IMPLEMENTATIONS, exported, loaded
from moekit_bench.results import Ratio, ratio

PROMPT = 16

MIXTRAL = (
    "model.attention={use: gqa, heads: 4, kv_heads: 2, head_dim: 32}",
    "model.moe.at={first: 0}",
    "model.moe.router={top_k: 2, score: softmax, scale: 1.0, groups: 1, top_groups: null, group_score: max}",
    "model.moe.experts={use: glu, count: 8, hidden: 216}",
    "model.moe.shared=null",
    "model.moe.balancers=null",
)
"""A Mixtral of the sizes of the recipe ``deepseek_v3``."""

Run = Callable[[], object]


def prompts(batch: int) -> Tensor:
    """int64 ``[batch, PROMPT]``: tokens that differ."""
    return torch.arange(batch * PROMPT).reshape(batch, PROMPT) % 251


def ours(model: Model, batch: int, length: int, *, cached: bool = True) -> Tensor:
    """The most likely continuation of each prompt until the texts have ``length`` tokens, int64 ``[batch, tokens]``."""
    new = continuations(
        model, prompts(batch), tokens=length - PROMPT, temperature=0, context=length, cached=cached
    )  # fmt: skip
    return torch.stack(list(new), dim=1)


def theirs(model: Any, batch: int, length: int) -> Tensor:
    """The same, by ``generate`` of transformers."""
    given = prompts(batch)
    options = {"attention_mask": torch.ones_like(given), "eos_token_id": None, "pad_token_id": 0}
    out: Tensor = model.generate(given, max_new_tokens=length - PROMPT, do_sample=False, **options)
    return out[:, PROMPT:]


def seconds(run: Run) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if (taken := seconds(run)) and turn:
                times[name].append(taken)
    return times


def baseline_rows(recipe: str, lengths: list[int], batch: int, rounds: int) -> Iterator[list[Any]]:
    """Of a recipe's model and of its dense baseline, without and with a cache."""
    spec = load(recipe).model
    dense = spec.dense_baseline()
    assert dense is not None, f"{recipe} has no dense baseline to compare with"
    torch.manual_seed(0)
    models: dict[str, Model] = {"mixture": build(spec).eval(), "dense": build(dense).eval()}
    for length in lengths:
        for cached in (False, True):
            runs = {name: partial(ours, model, batch, length, cached=cached) for name, model in models.items()}
            times = interleaved(runs, rounds)
            best = [batch * (length - PROMPT) / min(times[name]) for name in models]
            yield [length, "with" if cached else "without", *best, ratio(times["mixture"], times["dense"])]


def peer_rows(lengths: list[int], batches: list[int], rounds: int) -> Iterator[list[Any]]:
    """Of DeepSeek-V3 and of a Mixtral of its sizes, next to the fastest implementation of transformers.

    Raises:
        AssertionError: the two write different tokens.
    """
    for name, options in (("DeepSeek-V3", ()), ("Mixtral", MIXTRAL)):
        recipe = load("deepseek_v3", ["model.mtp=null", *options])
        torch.manual_seed(0)
        model = build(recipe.model).eval()
        with TemporaryDirectory() as folder:
            path = exported(recipe, model, Path(folder))
            peers = {each: loaded(path, each) for each in (*IMPLEMENTATIONS, "batched_mm")}
        for batch in batches:
            for length in lengths:
                yield _next_to(name, model, peers, batch, length, rounds)


def _next_to(name: str, model: Model, peers: Mapping[str, Any], batch: int, length: int, rounds: int) -> list[Any]:
    trial = {
        each: min(seconds(lambda p=peer: theirs(p, batch, 4 * PROMPT)) for _ in range(2))
        for each, peer in peers.items()
    }  # type: ignore[misc]
    fastest = min(trial, key=trial.__getitem__)
    same = torch.equal(ours(model, batch, length), theirs(peers[fastest], batch, length))
    assert same, f"{name}: transformers writes other tokens"
    runs: dict[str, Run] = {"ours": partial(ours, model, batch, length)}
    times = interleaved({**runs, "theirs": partial(theirs, peers[fastest], batch, length)}, rounds)
    rates = [batch * (length - PROMPT) / min(times[each]) for each in ("ours", "theirs")]
    found: Ratio = ratio(times["theirs"], times["ours"])
    return [name, batch, length, fastest, *rates, found, found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="deepseek_v3", help="without --against")
    parser.add_argument("--against", choices=("transformers",), help="its model of the same weights, if installed")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256], help="of the finished texts, in tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="texts at a time; without --against one")
    parser.add_argument("--rounds", type=int, default=9)
    measured.option(parser)
    args = parser.parse_args()
    keep_freed_memory()  # as ``moekit generate`` and ``moekit train`` do
    if args.against:
        columns = {"model": "{}", "texts": "{}", "tokens": "{}", "their experts": "`{}`", "ours, tokens/s": "{:.0f}"}
        columns |= {
            "theirs": "{:.0f}",
            "their time ÷ ours, best (median)": measured.RATIO,
            "quartiles": "{low:.2f} to {high:.2f}",
        }
        name, rows = "decoding_against", peer_rows(args.lengths, args.batch, args.rounds)
    else:
        columns = {"tokens": "{}", "cache": "{}", "mixture, tokens/s": "{:.0f}", "dense, tokens/s": "{:.0f}"}
        columns |= {"mixture's time ÷ dense, best (median)": measured.RATIO}
        name, rows = "decoding", baseline_rows(args.recipe, args.lengths, 1, args.rounds)
    measured.publish(name, measured.table(columns, list(rows)), docs=args.docs)


if __name__ == "__main__":
    main()
