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
from typing import Any, NamedTuple

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
    """Seconds of each step, and of the processor in it: other processes on the machine change those less."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.last = (0.0, 0.0)

    def on_train_batch_end(self, *args: Any) -> None:
        """Records the time since the end of the last step."""
        now = (time.perf_counter(), time.process_time())
        self.steps.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now


class Seconds(NamedTuple):
    """Of a step of one run: the best, the median, and the median of the processor time of rank 0."""

    best: float
    median: float
    processor: float


def train(world: int, dense: str, steps: int) -> None:
    """Trains in this process, one of ``world`` ranks; rank 0 prints its ``Seconds``."""
    recipe, clock = recipe_of(world, dense, WARM + steps), Clock()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module = LitMoE(recipe)
        make_trainer(recipe, RunFolder(Path(folder)), callbacks=[clock]).fit(module)
    if int(os.environ.get("RANK", "0")) == 0:
        wall, processor = zip(*clock.steps[WARM:], strict=True)
        print(f"seconds {min(wall)} {statistics.median(wall)} {statistics.median(processor)}", flush=True)


def launched(world: int, dense: str, steps: int) -> Seconds:
    """A run of ``world`` ranks with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += [__file__, "--world", str(world), "--dense", dense, "--steps", str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("seconds"))
    return Seconds(*map(float, line.split()[1:]))


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
        sent, runs, alone = planned(world, dense), *([r[of] for r in rounds] for of in ((world, dense), LAYOUTS[0]))
        rows.append(
            [
                world,
                HELD * world,
                dense if world > 1 else None,
                1e3 * min(run.best for run in runs),
                min(run.best for run in runs) / min(run.best for run in alone),
                ratio([run.median for run in runs], [run.median for run in alone]),
                ratio([run.processor for run in runs], [run.processor for run in alone]),
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
        "÷ 1 process, best": "{:.2f}",
        "median of rounds": measured.QUARTILES,
        "processor time of a process ÷ 1 process": measured.QUARTILES,
        "bytes per token": "{:.0f}",
        "MiB of weights and gradients": "{:.1f}",
        "messages": "{}",
        "collectives": "{}",
    }
    measured.publish("ranks", measured.table(columns, rows, device="one thread each, gloo"), docs=args.docs)


if __name__ == "__main__":
    main()
