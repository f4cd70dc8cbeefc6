"""``moekit upcycle``: a mixture from a dense run, imported or trained here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
  MOE="{at: {every: 2}, router: {use: topk, top_k: 2, renormalize: true}, experts: {use: glu, count: 8, hidden: 8192}}"
  moekit upcycle runs/llama --to runs/moe "model.moe=$MOE"
  moekit upcycle runs/llama --to runs/moe "model.moe=$MOE" --shards 2    experts of half the width; top_k even
  moekit upcycle runs/llama --to runs/moe "model.moe=$MOE" --redraw 0.5  half of each expert's units start anew
  moekit upcycle runs/code runs/prose --to runs/moe "model.moe=$MOE"     experts by turns, all else the mean
  moekit train runs/moe
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "runs", nargs="+", metavar="DENSE", help="runs with dense models: folders, names or checkpoints; and KEY=VALUE"
    )
    parser.add_argument("--to", required=True, metavar="RUN", help="the new run's folder")
    parser.add_argument(
        "--shards", type=int, default=1, metavar="G", help="experts that share one net's units (default: 1)"
    )
    parser.add_argument(
        "--redraw", type=float, default=0.0, metavar="R", help="share of units initialised anew (default: 0)"
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, metavar="S", help="noise on experts, in standard deviations (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of router and fresh units (default: 0)")
    parser.add_argument("--root", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Makes the run, and prints its counts.

    Raises:
        MoekitError: an argument is out of range, or the mixture cannot be made.
    """
    from moekit.errors import MoekitError

    if all("=" in text for text in args.runs):
        raise MoekitError("no dense run is given\n  expected moekit upcycle DENSE --to RUN model.moe=...")
    from moekit.params import count_parameters
    from moekit.spec import component_spec
    from moekit_upcycle.upcycling import upcycle

    runs = [text for text in args.runs if "=" not in text]
    overrides = [text for text in args.runs if "=" in text]
    options = {name: getattr(args, name) for name in ("shards", "redraw", "noise", "seed")}
    how: Any = component_spec("converter", {"use": "upcycle", **options})
    made = upcycle(runs, Path(args.to), overrides, how, Path(args.root))
    count = count_parameters(made.recipe)
    print(f"{len(made.layers)} mixtures, {count.total:,} parameters in total, {count.active():,} active")
    same = "it computes what the dense model computes"
    print("\n  ".join(["it does not compute what the dense model does:", *made.differs]) if made.differs else same)
    print(f"{args.to}\n  moekit train {args.to}")
    return 0
