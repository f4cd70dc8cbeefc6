"""``moekit import``: a folder of Hugging Face's as a run."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  moekit import OLMoE-1B-7B --to runs/olmoe
  moekit import allenai/OLMoE-1B-7B-0924 --to runs/olmoe     (fetched, if huggingface_hub is installed)
  moekit generate runs/olmoe "The "
  moekit train runs/olmoe model.moe.balancers.load.weight=0.02 trainer.max_steps=200
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", help="a folder with config.json and safetensors, or owner/name")
    parser.add_argument("--to", default="", metavar="RUN", help="the run's folder (default: a new one below runs/)")


def run(args: argparse.Namespace) -> int:
    """Imports the folder, and prints what came of it."""
    from moekit.machine import keep_freed_memory
    from moekit.training.run.folder import RUNS, RunFolder
    from moekit_hf.cli.inspect_folder import lines_of
    from moekit_hf.folder import located
    from moekit_hf.importing import import_folder

    keep_freed_memory()  # every tensor is read into memory of the same size
    source = located(args.folder)
    claimed = None if args.to else RunFolder.claim(RUNS, source.resolve().name or "imported")
    to = Path(args.to) if claimed is None else claimed.path
    try:
        found = import_folder(source, to)
    except BaseException:
        if claimed is not None and claimed.path.exists():
            claimed.release()
        raise
    print("\n".join([*lines_of(found), "", f"{to}", f'  moekit generate {to} "The "', f"  moekit train {to}"]))
    return 0
