"""The time of a training step on 1, 2 and 4 ranks, at constant experts and tokens for each rank.

    python benchmarks/ranks.py

A small ``deepseek_v3`` with 16 experts for each rank, trained by Lightning with the strategy ``sharded`` and all ranks
in one expert group. World sizes are interleaved. Bytes, messages and collectives are those of ``moekit plan``.
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

from moekit import load
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet
from moekit_plan.plan import RunPlanner
from moekit_plan.request import PlanRequest

WORLDS = (1, 2, 4)
HELD, BATCH, SEQUENCE = 16, 8, 128
WARM = 4  # steps that are not counted


def recipe_of(world: int, steps: int) -> Recipe:
    """The recipe for ``world`` ranks."""
    options = [
        "model.depth=2", "model.mtp=null", "objective={use: causal_lm}", "compare=null", f"data.seq={SEQUENCE}",
        f"model.moe.experts.count={HELD * world}", "model.moe.router.groups=1", "model.moe.router.top_groups=null",
        f"data.batch={BATCH}", "trainer.accelerator=cpu", f"trainer.devices={world}", f"trainer.max_steps={steps}",
        "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false",
        "trainer.log_every_n_steps=1000",
    ]  # fmt: skip
    if world > 1:
        options.append(f"trainer.strategy={{use: sharded, ep: {world}}}")
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


def train(world: int, steps: int) -> None:
    """Trains in this process, one of ``world`` ranks; rank 0 prints its best and its median step."""
    recipe, clock = recipe_of(world, WARM + steps), Clock()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module = LitMoE(recipe)
        make_trainer(recipe, RunFolder(Path(folder)), callbacks=[clock]).fit(module)
    if int(os.environ.get("RANK", "0")) == 0:
        counted = clock.seconds[WARM:]
        print(f"seconds {min(counted)} {statistics.median(counted)}", flush=True)


def launched(world: int, steps: int) -> tuple[float, float]:
    """Best and median seconds of a step, in a run of ``world`` ranks with one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command += [__file__, "--world", str(world), "--steps", str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    _, best, median = next(line for line in output.splitlines() if line.startswith("seconds")).split()
    return float(best), float(median)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--world", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.world:
        train(args.world, args.steps)
        return
    rounds = [{world: launched(world, args.steps) for world in WORLDS} for _ in range(args.rounds)]
    print(f"{os.cpu_count()} cores\n")
    print("| ranks | experts | ms, best | median | ÷ 1 rank, best | median of rounds | bytes a token | messages |")
    print("|---|---|---|---|---|---|---|---|")
    for world in WORLDS:
        recipe = recipe_of(world, 1)
        request = PlanRequest(
            devices=world, eps=(world,), batch=BATCH, sequence=SEQUENCE, accumulate=1, precision="32-true",
            device_memory=2**40,
        )  # fmt: skip
        wire = RunPlanner(recipe).plan(request, "none").rows[0].traffic
        best = min(r[world][0] for r in rounds)
        ratios = [r[world][1] / r[1][1] for r in rounds]
        cells = [
            str(world),
            str(HELD * world),
            f"{1e3 * best:.0f}",
            f"{1e3 * statistics.median(r[world][1] for r in rounds):.0f}",
            f"{best / min(r[1][0] for r in rounds):.2f}",
            f"{statistics.median(ratios):.2f}",
            f"{sum(layer.bytes_per_token for layer in wire.layers.values()):.0f}",
            f"{wire.messages} + {wire.collectives} collectives",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
