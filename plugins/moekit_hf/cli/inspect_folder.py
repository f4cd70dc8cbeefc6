"""``moekit inspect``: which family a folder of Hugging Face's is, what is in it, and whether it can be imported."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from moekit.cli import text

if TYPE_CHECKING:
    from moekit_hf.importing import Found

EXAMPLES = """\
  moekit inspect OLMoE-1B-7B
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", help="a folder with config.json and safetensors, or owner/name")


def run(args: argparse.Namespace) -> int:
    """Prints what the folder holds; what cannot be imported is an error that names it."""
    from moekit_hf.folder import located
    from moekit_hf.importing import inspect

    print("\n".join(lines_of(inspect(located(args.folder)))))
    return 0


def lines_of(found: Found) -> list[str]:
    """The family, counts of parameters, tensors and bytes, and what is ignored, with the reason."""
    from moekit.cli.recipe import component_rows
    from moekit.params import count_parameters
    from moekit.registry import current
    from moekit.spec.recipe import Recipe

    count = count_parameters(Recipe(model=found.model))
    names = Counter(str(dtype).removeprefix("torch.") for dtype in found.dtypes.values())
    rows = [
        ("format", found.name),
        ("parameters", f"{count.total:,} in total, {count.active():,} active for one token"),
        ("tensors", f"{len(found.table.theirs):,} of theirs, {len(found.table.ours):,} of ours, each element once"),
        ("weights", f"{found.folder.num_bytes():,} bytes, {', '.join(names)}"),
    ]
    given = found.folder.config.get("router_aux_loss_coef")
    if found.balance_weight:
        rows.append(("balance loss", f"of all layers together, weight {found.balance_weight:g}"))
    elif given:
        why = "transformers trains without it, too, unless output_router_logits is true"
        rows.append(("balance loss", f"router_aux_loss_coef={given} is not used: {why}"))
    for why in dict.fromkeys(found.ignored.values()):
        which = [name for name, reason in found.ignored.items() if reason == why]
        rows.append(("ignored", f"{len(which)} tensors, such as {which[0]}: {why}"))
    parts = [(path, use, summary) for path, use, summary in component_rows(current(), found.model, "model.")]
    return [*text.table(rows, fold=(1,)), "", *text.table(parts, fold=(2,))]
