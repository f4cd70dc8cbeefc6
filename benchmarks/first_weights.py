"""Memory and time that a rank takes to initialise its shards of a model.

    python benchmarks/first_weights.py glam-0.1b           # two ranks; needs 16 GB
    python benchmarks/first_weights.py glam-0.1b --docs    # also writes the table of docs/benchmarks.md

By deferred initialisation, as ``moekit train`` does it; or every rank builds the whole model and then shards it. Each
row is a run of its own: a process reports its peak memory since its start (Linux).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import measured
import torch
import torch.distributed as dist
from growth import DONE, launched

from moekit import load
from moekit.shards import local
from moekit.training.build import build_seeded
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.deferred_init import defer_init
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.module import with_expert_parallel


def peak() -> float:
    """Peak resident memory of this process, GiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def work(recipe: str, ep: int, *, whole: bool) -> None:
    """Builds in this process, one of all ranks; rank 0 prints a row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    spec = with_expert_parallel(load(recipe), Sharded(ep=ep)).model
    before, began = peak(), time.perf_counter()
    if whole:
        model = build_seeded(spec, 0)
        shard(model, ep, "cpu")
    else:
        with defer_init() as waiting:
            model = build_seeded(spec, 0)
        shard(model, ep, "cpu")
        waiting.materialize(model, "cpu")
    took, above = time.perf_counter() - began, peak() - before
    kept = sum(local(p).numel() * p.element_size() for p in model.parameters()) / 2**30
    if dist.get_rank() == 0:
        print(DONE, json.dumps([[ep, "whole" if whole else "sharded", kept, above, took]]), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--work", nargs=2, metavar=("EP", "WHOLE"), type=int, help=argparse.SUPPRESS)
    measured.option(parser)
    args = parser.parse_args()
    if args.work:
        work(args.recipe, args.work[0], whole=bool(args.work[1]))
        return
    rows = []
    for ep in (1, 2):
        for whole in (0, 1):
            rows += launched(2, [__file__, args.recipe, "--work", str(ep), str(whole)])
    columns = {"ep": "{}", "first": "{}", "final, GiB": "{:.2f}", "peak, GiB": "{:.2f}", "seconds": "{:.0f}"}
    made = measured.table(columns, rows, device="two processes of one thread")
    measured.publish("first_weights", made, docs=args.docs)


if __name__ == "__main__":
    main()
