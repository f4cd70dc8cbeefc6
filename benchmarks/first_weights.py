"""Memory and time that a process takes until its piece of a model in shards has its first weights.

    torchrun --nproc-per-node 2 benchmarks/first_weights.py glam-0.1b
    torchrun --nproc-per-node 2 benchmarks/first_weights.py glam-0.1b --whole

As ``moekit train`` does it, laid out before it is drawn; or built whole by every process, and then cut. One way a run:
the peak of a process is the highest since it began (Linux).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist

from moekit import load
from moekit.parallel.deferred_init import defer_init
from moekit.parallel.sharding import shard
from moekit.parallel.strategy import with_expert_parallel
from moekit.shards.shard import local
from moekit.spec.sharding import Sharded
from moekit.training.build import build_seeded


def peak() -> float:
    """GiB at most so far."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--ep", type=int, default=1, help="processes that share the experts")
    parser.add_argument("--whole", action="store_true", help="build the model whole, then cut it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    spec, before, began = (
        with_expert_parallel(load(args.recipe), Sharded(ep=args.ep)).model,
        peak(),
        time.perf_counter(),
    )
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
    print(f"rank {dist.get_rank()}: keeps {kept:.2f} GiB, took {above:.2f} GiB at most and {took:.1f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
