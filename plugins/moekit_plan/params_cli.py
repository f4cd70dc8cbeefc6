"""``moekit params``: the parameters of a recipe's model, in total and active for one token."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moekit.cli import text
from moekit.cli.config import one_name

if TYPE_CHECKING:
    from moekit.params import ParameterCount, Reading
    from moekit.spec.recipe import Paper

EXAMPLES = """\
  moekit params deepseek_v3
  moekit params deepseek_v3-671b                       allocates no memory
  moekit params deepseek_v3 model.moe.experts.count=32
"""

READINGS: dict[Reading, str] = {
    "both": "with both embeddings",
    "without_input": "without the input embedding",
    "without_either": "without either embedding",
}


SIZES = {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("name", help="a recipe or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="options to change")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the counts.

    Raises:
        MoekitError: the recipe has mistakes, or more than one was named.
    """
    name, overrides = one_name("params", [args.name, *args.overrides])
    from moekit.spec import load

    recipe = load(name, overrides)
    from moekit.params import count_parameters  # imports torch, so only once the spec is valid

    count = count_parameters(recipe)
    if args.json:
        text.print_json(_plain(count))
    else:
        print("\n".join(_page(" ".join([name, *overrides]), count, recipe.paper)))
    return 0


def rounded(number: int) -> str:
    """A count as papers write it: ``671.0B``, ``37.6M``, ``812``."""
    for unit, size in SIZES.items():
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def rounded_like(number: int, published: str) -> str:
    """A count in the unit and with the digits of a published one: 96,603,000,000 is ``96.6B`` next to ``96.6B``."""
    figure, unit = published[:-1], published[-1:]
    if unit not in SIZES or not figure.replace(".", "", 1).isdigit():
        return rounded(number)
    return f"{number / SIZES[unit]:.{len(figure.partition('.')[2])}f}{unit}"


def _page(title: str, count: ParameterCount, paper: Paper | None) -> list[str]:
    parts = [(part, number, count.active_parts[part]) for part, number in count.parts.items() if number]
    rows = [(part, f"{number:,}", f"{active:,}") for part, number, active in parts]
    rows.append(("total", f"{count.total:,}", f"{count.active():,}"))
    lines = [text.bold(title), "", *_numbers([("", "parameters", "active per token"), *rows])]
    lines += ["", text.bold("active per token, by what is counted")]
    reading = paper.reading if paper else ""
    lines += _numbers(
        [(words, f"{count.active(r):,}", rounded(count.active(r))) for r, words in READINGS.items()],
        notes=["the paper's reading" if r == reading else "" for r in READINGS],
    )
    if count.tied:
        lines.append("  the input embedding is also the head: one matrix, counted once")
    if count.extra:
        lines += ["", text.bold("used only in training, not counted above")]
        lines += _numbers([(name, f"{number:,}", rounded(number)) for name, number in count.extra.items()])
    if paper and (paper.total or paper.active):
        bare = paper.total_reading == "without_either"
        total = count.without_embeddings if bare else count.total
        published = [("", "published", "here"), ("total", paper.total or "-", rounded_like(total, paper.total))]
        active = count.active(paper.reading or "both")
        published.append(("active", paper.active or "-", rounded_like(active, paper.active)))
        notes = ["", READINGS["without_either"] if bare else "", READINGS[paper.reading] if paper.reading else ""]
        lines += ["", text.bold(paper.title or "published"), *_numbers(published, notes)]
    return lines


def _numbers(rows: Sequence[tuple[str, ...]], notes: Sequence[str] = ()) -> list[str]:
    """A table whose columns after the first are aligned to the right."""
    right = text.to_the_right(rows)
    return text.table([(*row, note) for row, note in zip(right, notes or [""] * len(rows), strict=True)])


def _plain(count: ParameterCount) -> dict[str, object]:
    return {
        "parts": dict(count.parts),
        "active_parts": dict(count.active_parts),
        "total": count.total,
        "active": {reading: count.active(reading) for reading in READINGS},
        "tied": count.tied,
        "training_alone": dict(count.extra),
    }
