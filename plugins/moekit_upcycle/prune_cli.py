"""``moekit prune``: a run with fewer experts in each layer, those that contribute most to some text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moekit_upcycle.saliency import Saliency

EXAMPLES = """\
  moekit prune runs/mixtral data.use=text_files data.path=my_text        (judges the experts, and changes nothing)
  moekit prune runs/mixtral --keep 6 --to runs/six
  moekit train runs/six
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the text: data.option=value")
    parser.add_argument(
        "--keep", type=int, metavar="N", help="experts that each layer keeps (default: only judge them)"
    )
    parser.add_argument("--to", metavar="RUN", help="the new run's folder")
    parser.add_argument("--root", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Prints load and saliency of every expert; with ``--keep``, makes the smaller run and prints its loss.

    Raises:
        MoekitError: one of ``--keep`` and ``--to`` is given without the other, or the run cannot be pruned.
    """
    from moekit.cli import text
    from moekit.errors import MoekitError
    from moekit.params import count_parameters
    from moekit.training.run.folder import checkpoint_of
    from moekit_upcycle.pruning import opened, prune
    from moekit_upcycle.saliency import saliency

    if (args.keep is None) != (args.to is None):
        raise MoekitError("--keep and --to belong together\n  expected moekit prune RUN --keep N --to RUN2")
    if args.keep is None:
        _, batches, model, _ = opened(checkpoint_of(args.run, Path(args.root)), args.overrides)
        print("\n".join(text.table(rows_of(saliency(model, batches)))))
        return 0
    made = prune(args.run, Path(args.to), args.keep, args.overrides, Path(args.root))
    print("\n".join(text.table(rows_of(made.layers, made.kept))))
    count = count_parameters(made.recipe)
    print(f"\nloss {made.before:.4f} before, {made.after:.4f} after; {count.total:,} parameters in total")
    print(f"{args.to}\n  moekit train {args.to}")
    return 0


def rows_of(
    layers: Mapping[str, Saliency], kept: Mapping[str, Sequence[int]] | None = None
) -> list[tuple[str, str, str, str, str]]:
    """A row for every expert of every layer: its share of the load, its saliency, and what becomes of it."""
    rows = [("layer", "expert", "load", "saliency", "")]
    for name, each in layers.items():
        total = max(float(each.load_E.sum()), 1.0)
        for e, (load, value) in enumerate(zip(each.load_E.tolist(), each.mean_E.tolist(), strict=True)):
            what = "dead" if not load else "" if kept is None or e in kept[name] else "removed"
            rows.append((name if e == 0 else "", f"{e}", f"{load / total:.1%}", f"{value:.3g}", what))
    return rows
