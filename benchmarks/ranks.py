"""The time of a training step on 1, 2 and 4 ranks, at constant experts and tokens for each rank.

    python benchmarks/ranks.py           # the dense part sharded, and replicated
    python benchmarks/ranks.py --docs    # also writes the table of docs/benchmarks.md

A small ``deepseek_v3`` with 16 experts for each rank, trained by Lightning with the strategy ``sharded`` and all ranks
in one expert group. World sizes and layouts are interleaved. Bytes, messages and collectives are those of ``moekit
plan``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import measured

from moekit import load
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet
from moekit_bench.results import ratio
from moekit_plan.communication import DeviceTraffic
from moekit_plan.plan import RunPlanner
from moekit_plan.request import PlanRequest

LAYOUTS = ((1, "shard"), (2, "shard"), (2, "replicate"), (4, "shard"), (4, "replicate"))
"""Ranks, and what becomes of the dense part; the first is the baseline."""

HELD, BATCH, SEQUENCE = 16, 8, 128
WARM = 4  # steps that are not counted


def recipe_of(world: int, dense: str, steps: int) -> Recipe:
    """The recipe for ``world`` ranks."""
    options = [
        "model.depth=2", "model.mtp=null", "objective={use: causal_lm}", "compare=null", f"data.seq={SEQUENCE}",
        f"model.moe.experts.count={HELD * world}", "model.moe.router.groups=1", "model.moe.router.top_groups=null",
        f"data.batch={BATCH}", "trainer.accelerator=cpu", f"trainer.devices={world}", f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=1000",
    ]  # fmt: skip
    if world > 1:
        options.append(f"trainer.strategy={{use: sharded, ep: {world}, dense: {dense}}}")
    return load("deepseek_v3", options)


class Clock(L.Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Records the time since the end of the last step."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def train(world: int, dense: str, steps: int) -> None:
    """Trains in this process, one of ``world`` ranks; rank 0 prints its best and its median step."""
    recipe, clock = recipe_of(world, dense, WARM + steps), Clock()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module = LitMoE(recipe)
        make_trainer(recipe, RunFolder(Path(folder)), callbacks=[clock]).fit(module)
    if int(os.environ.get("RANK", "0")) == 0:
        counted = clock.seconds[WARM:]
        print(f"seconds {min(counted)} {statistics.median(counted)}", flush=True)


def launched(world: int, dense: str, steps: int) -> tuple[float, float]:
    """Best and median seconds of a step, in a run of ``world`` ranks with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += [__file__, "--world", str(world), "--dense", dense, "--steps", str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    _, best, median = next(line for line in output.splitlines() if line.startswith("seconds")).split()
    return float(best), float(median)


def planned(world: int, dense: str) -> DeviceTraffic:
    """What a rank sends in a step."""
    request = PlanRequest(
        devices=world, eps=(world,), batch=BATCH, sequence=SEQUENCE, accumulate=1, precision="32-true",
        device_memory=2**40, dense=dense,
    )  # fmt: skip
    return RunPlanner(recipe_of(world, dense, 1)).plan(request, "none").rows[0].traffic


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--world", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--dense", default="shard", help=argparse.SUPPRESS)
    measured.option(parser)
    args = parser.parse_args()
    if args.world:
        train(args.world, args.dense, args.steps)
        return
    rounds = [{layout: launched(*layout, args.steps) for layout in LAYOUTS} for _ in range(args.rounds)]
    rows = []
    for world, dense in LAYOUTS:
        sent = planned(world, dense)
        best, median = ([each[world, dense][i] for each in rounds] for i in (0, 1))
        medians = ratio(median, [each[LAYOUTS[0]][1] for each in rounds])
        rows.append(
            [
                world,
                HELD * world,
                dense if world > 1 else None,
                1e3 * min(best),
                1e3 * statistics.median(median),
                min(best) / min(each[LAYOUTS[0]][0] for each in rounds),
                medians,
                sum(layer.bytes_per_token for layer in sent.layers.values()),
                (sent.gathers + sent.scatters + sent.sums) / 2**20,
                sent.messages,
                sent.collectives,
            ]
        )
    columns = {
        "processes": "{}",
        "experts": "{}",
        "dense part": "`{}`",
        "ms, best": "{:.0f}",
        "median": "{:.0f}",
        "÷ 1 process, best": "{:.2f}",
        "median of rounds (quartiles)": measured.QUARTILES,
        "bytes per token": "{:.0f}",
        "MiB of weights and gradients": "{:.1f}",
        "messages": "{}",
        "collectives": "{}",
    }
    measured.publish("ranks", measured.table(columns, rows, device="one thread each, gloo"), docs=args.docs)


if __name__ == "__main__":
    main()
