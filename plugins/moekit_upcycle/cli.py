"""``moekit upcycle``: a mixture from a dense run, imported or trained here."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  moekit upcycle runs/llama --to runs/moe "model.moe={at: {every: 2}, router: {use: topk, top_k: 2, renormalize: true},
                                           experts: {use: glu, count: 8, hidden: 8192}}"
  moekit upcycle runs/llama --to runs/moe --shards 4 ...    (experts of a quarter of the width; top_k a multiple of 4)
  moekit upcycle runs/llama --to runs/moe --fresh 0.5 ...  (half of each expert's units are initialised anew)
  moekit train runs/moe
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="DENSE", help="a run with a dense model: its folder, its name, or a checkpoint")
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="the mixture, below model.moe")
    parser.add_argument("--to", required=True, metavar="RUN", help="the new run's folder")
    parser.add_argument(
        "--shards", type=int, default=1, metavar="G", help="experts that share one net's units (default: 1)"
    )
    parser.add_argument(
        "--fresh", type=float, default=0.0, metavar="R", help="share of units initialised anew (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of router and fresh units (default: 0)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Makes the run, and prints its counts.

    Raises:
        MoekitError: an argument is out of range, or the mixture cannot be made.
    """
    from moekit.errors import MoekitError

    if args.shards < 1 or not 0 <= args.fresh <= 1:
        raise MoekitError(f"--shards {args.shards} --fresh {args.fresh}: expected at least 1, and 0 to 1")

    from moekit.params import count_parameters
    from moekit_upcycle.experts import Upcycling
    from moekit_upcycle.upcycling import upcycle

    how = Upcycling(shards=args.shards, fresh=args.fresh, seed=args.seed)
    made = upcycle(args.run, Path(args.to), args.overrides, how, Path(args.runs))
    count = count_parameters(made.recipe)
    same = (
        "it computes what the dense model computes" if made.exact else "fresh units: it is not the dense model any more"
    )
    print(f"{len(made.layers)} mixtures, {count.total:,} parameters in total, {count.active():,} active; {same}")
    print(f"{args.to}\n  moekit train {args.to}")
    return 0
