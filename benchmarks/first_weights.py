"""Memory and time that a rank takes to initialise its shards of a model.

    torchrun --nproc-per-node 2 benchmarks/first_weights.py glam-0.1b
    torchrun --nproc-per-node 2 benchmarks/first_weights.py glam-0.1b --whole

By deferred initialisation, as ``moekit train`` does it; with ``--whole``, every rank builds the whole model and then
shards it. Measure one of both in a run: a process reports its peak memory since its start (Linux).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--ep", type=int, default=1, help="ranks of an expert group")
    parser.add_argument("--whole", action="store_true", help="build the whole model, then shard it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    spec = with_expert_parallel(load(args.recipe), Sharded(ep=args.ep)).model
    before, began = peak(), time.perf_counter()
    if args.whole:
        model = build_seeded(spec, 0)
        shard(model, args.ep, "cpu")
    else:
        with defer_init() as waiting:
            model = build_seeded(spec, 0)
        shard(model, args.ep, "cpu")
        waiting.materialize(model, "cpu")
    took, above = time.perf_counter() - began, peak() - before
    kept = sum(local(p).numel() * p.element_size() for p in model.parameters()) / 2**30
    print(f"rank {dist.get_rank()}: keeps {kept:.2f} GiB, took {above:.2f} GiB at its peak and {took:.1f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
