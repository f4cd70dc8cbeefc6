"""``moekit prune``: a run with fewer experts in each layer, those that contribute most to some text."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  moekit prune runs/mixtral --keep 6 --to runs/six
  moekit prune runs/mixtral --keep 6 --to runs/six data.use=text_files data.path=my_text
  moekit train runs/six
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the text: data.option=value")
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="experts that each layer keeps")
    parser.add_argument("--to", required=True, metavar="RUN", help="the new run's folder")
    parser.add_argument("--root", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Makes the run, and prints which experts are left, and the loss before and after."""
    from moekit.cli import text
    from moekit.params import count_parameters
    from moekit_upcycle.pruning import prune

    made = prune(args.run, Path(args.to), args.keep, args.overrides, Path(args.root))
    rows = [("layer", "left out, with its saliency and load")]
    for name, each in made.layers.items():
        out = [e for e in range(len(each.load_E)) if e not in made.kept[name]]
        said = [f"{e} ({float(each.mean_E[e]):.3g}, {int(each.load_E[e]):,})" for e in out]
        rows.append((name, ", ".join(said)))
    count = count_parameters(made.recipe)
    print("\n".join(text.table(rows, fold=(1,))))
    print(f"\nloss {made.before:.4f} before, {made.after:.4f} after; {count.total:,} parameters in total")
    print(f"{args.to}\n  moekit train {args.to}")
    return 0
