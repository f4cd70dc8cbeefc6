"""``moekit export``: write a trained model's weights to one file."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  moekit export deepseek_v3
  moekit export runs/deepseek_v3/2026-01-31_12-00-00/checkpoints/best --out deepseek.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("--out", default="", metavar="FILE", help="the file (default: in the run's folder)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Writes the file, and prints its size and sha256."""
    from moekit.inference.export import export

    path, digest, elements = export(args.run, Path(args.out) if args.out else None, Path(args.runs))
    print(f"{elements:,} numbers, {digest.size:,} bytes, sha256 {digest.sha256}\n{path}")
    return 0
