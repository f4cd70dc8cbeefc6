"""The command line of ``benchmarks/gpu.sh``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from gpu.case import Where
from gpu.child import run_cases
from gpu.runner import Part, run_parts

PARTS = (
    Part(module="gpu.machine", title="the card, and what this torch can do with it", limit=20),
    Part(module="gpu.dispatchers", title="dispatchers against the loop in fp64, on memory full of NaN", limit=100),
    Part(module="gpu.marked_tests", title="pytest -m gpu", limit=110),
    Part(module="gpu.reads", title="reads of the device in three training steps", limit=35),
    Part(module="gpu.olmoe", title="profile of a layer of OLMoE", limit=35),
    Part(module="gpu.layers", title="layers against other libraries, forward and backward, over dense", limit=85),
    Part(module="gpu.training", title="training by precision, and compiled", limit=70),
    Part(module="gpu.resuming", title="deterministic training, killed and resumed", limit=45),
    Part(module="gpu.one_rank", title="one sharded rank with asynchronous saves", limit=40),
)
"""In the order of their value."""

MINUTES = 9.0
LONGER = 20
"""A rehearsal may take so many times as long: it may share a slow machine with other work."""


def main() -> int:
    """Runs all parts; 0 if no check failed."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description="What only a card can show.")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", default=",".join(names), help=f"only these of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results (default: gpu.json)")
    parser.add_argument("--docs", type=Path, metavar="JSON", help="show the results of a run in docs/benchmarks.md")
    for private in ("--part", "--device", "--skip", "--into"):  # of the process of a part
        parser.add_argument(private, default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        with os.fdopen(int(args.into), "w", encoding="utf-8") as out:
            return run_cases(args.part, Where(device=args.device), int(args.skip), out)
    if args.docs:
        from gpu.tables import publish

        publish(args.docs)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # also ends the part that runs
    chosen = args.parts.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"no part '{unknown[0]}'; there are {', '.join(names)}")
    where = Where(device="cpu" if args.rehearse else "cuda")
    factor = where.size(1, LONGER)
    parts = [replace(part, limit=factor * part.limit) for part in PARTS if part.name in chosen]
    good = run_parts(parts, where, args.out, seconds=factor * 60 * MINUTES, say=lambda line: print(line, flush=True))
    print(f"{args.out}: {'everything held' if good else 'something failed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
