"""``moekit generate``: generate text with a trained language model."""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """\
  moekit generate deepseek_v3 "def forward("
  moekit generate runs/deepseek_v3/2026-01-31_12-00-00 "The " --tokens 400 --temperature 1.0
  moekit generate switch "the source of a target text" --temperature 0
  moekit generate runs/switch/2026-01-31_12-00-00/checkpoints/best "#include <" --seed 7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a name (its latest run)")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue, or the source of a target text")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="number of tokens (default: 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0: always the likeliest token (default: 0.8)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="nucleus sampling, 0 < P <= 1 (default: 0.95)"
    )
    parser.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        help="use a cache (default: yes, unless experts have a capacity: then they would drop other tokens)",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="last tokens that the model reads, 0: all (default: its option context, or as many as in training)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: 0)")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> int:
    """Prints text as it is generated; of a model that continues its prompt, after the prompt.

    Raises:
        MoekitError: an option is out of range, the prompt is empty or not UTF-8, or the run's model is not a language
            model.
    """
    from moekit.inference.sampling import check_sampling

    check_sampling(
        prompt=args.prompt,
        tokens=args.tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        context=args.context,
        sign="--",
    )

    from moekit import run as runs  # after the arguments: it imports torch

    found = runs.open(args.run, out=args.out)
    new = found.stream(
        args.prompt,
        tokens=args.tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        cached=args.cache,
        context=args.context,
    )
    if found.recipe.model.takes != "pairs":
        sys.stdout.write(args.prompt)
    for text in new:
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
