"""``moekit export``: write a trained model's weights to one file, or in the format of an exporter."""

from __future__ import annotations

import argparse
from pathlib import Path

from moekit.errors import MoekitError
from moekit.registry import build, current

EXAMPLES = """\
  moekit export deepseek_v3
  moekit export runs/deepseek_v3/2026-01-31_12-00-00/checkpoints/best deepseek.safetensors
  moekit export deepseek_v3 folder --format NAME    (formats: moekit ls exporters)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument(
        "out", nargs="?", default="", metavar="OUT", help="what to write (default: in the run's folder)"
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the format")
    parser.add_argument(
        "--format", default="", metavar="NAME", help="an exporter's name (default: one safetensors file)"
    )
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Writes the model, and prints what was written.

    Raises:
        MoekitError: options without a format, or a format without a place to write to.
    """
    if args.format and not args.out:
        raise MoekitError("--format needs a place to write to\n  expected moekit export RUN OUT --format NAME")
    if args.options and not args.format:
        raise MoekitError(
            f"'{args.options[0]}' is an option of a format\n  expected --format NAME: moekit ls exporters"
        )
    from moekit.spec import component_spec
    from moekit.spec.loading import parse_overrides

    usual = None if args.format else current().default("exporter")
    node = {"use": args.format if usual is None else usual.full_name}
    for tree in parse_overrides(args.options, current()):
        node |= tree.data
    spec = component_spec("exporter", node)  # reports mistakes before torch is imported

    from moekit.training.run.folder import checkpoint_of

    exporter, checkpoint = build(spec), checkpoint_of(args.run, Path(args.runs))
    print("\n".join(exporter.export(checkpoint, Path(args.out) if args.out else exporter.usual_place(checkpoint))))
    return 0
