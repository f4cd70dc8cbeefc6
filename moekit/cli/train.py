"""``moekit train``: train a recipe, or resume a run."""

from __future__ import annotations

import argparse

EXAMPLES = """\
  moekit train deepseek_v3
  moekit train deepseek_v3 model.moe.router.top_k=4 trainer.max_steps=200
  moekit train my_recipe.yaml --name trial --out /data/runs --no-compare
  moekit train --resume runs/deepseek_v3/2026-01-31_12-00-00 trainer.max_steps=800
  moekit train --resume runs/deepseek_v3/2026-01-31_12-00-00/checkpoints/step-00000300
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("recipe", nargs="?", default="", metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options to change, by path")
    parser.add_argument("--out", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument("--name", help="name of the run's folder (default: the recipe's)")
    parser.add_argument(
        "--resume", default="", metavar="RUN", help="resume a run: its folder, its name, or one of its checkpoints"
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="resume although the data, its options, the seed or the precision have changed",
    )
    parser.add_argument("--no-compare", action="store_true", help="do not train the recipe's dense baseline")


def run(args: argparse.Namespace) -> int:
    """Trains.

    Raises:
        MoekitError: the recipe or an argument has a mistake; nothing has been written.
    """
    from moekit.errors import MoekitError
    from moekit.spec import load

    overrides = [*args.overrides, *(["compare=null"] if args.no_compare else [])]
    recipe = None
    if args.resume:
        # With --resume the first positional argument can only be an override.
        overrides = ([args.recipe] if args.recipe else []) + overrides
        if strays := [text for text in overrides if "=" not in text]:
            raise MoekitError(
                f"--resume takes the recipe from the run, not '{strays[0]}'\n  expected only path.to.option=value"
            )
        if args.name is not None:
            raise MoekitError(f"--resume keeps the run's folder: it takes no --name {args.name}")
    elif args.allow_changes:
        raise MoekitError("--allow-changes is for a run that is resumed\n  expected --resume RUN")
    elif not args.recipe:
        raise MoekitError(
            "no recipe is given\n  expected a recipe's name or a YAML file\n  list them: moekit ls recipes"
        )
    else:
        recipe, overrides = load(args.recipe, overrides), []  # reports mistakes before torch is imported

    from moekit import run as runs
    from moekit.machine import keep_freed_memory

    keep_freed_memory()  # before the first large array

    runs.train(
        recipe,
        overrides,
        out=args.out,
        name=args.name,
        resume=args.resume or None,
        allow_changes=args.allow_changes,
    )
    return 0
